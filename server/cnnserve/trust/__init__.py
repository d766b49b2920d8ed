"""Which signatures count. Nothing imports this package unless a server or a command is given trusted keys.

So the server's start does not pay for cryptography, and cnnserve runs where it is not installed.
"""
