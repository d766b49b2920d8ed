"""Who may do what: tokens, certificates, scopes, and the limits of each client.

May import `errors` only. The transports ask a `Guard` before they read a message.
"""
