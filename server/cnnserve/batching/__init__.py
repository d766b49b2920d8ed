"""Computes many requests in one run: queue, policy, instances and statistics.

May import `config`, `datatypes`, `errors`, `json_text` and `logs`, but no other package of `cnnserve`.
"""
