"""gRPC: the method table, its handlers, and the transport that carries them."""
