"""`cnnserve tune`: measures the layouts of a model on this machine and writes the best one into its config.pbtxt."""
