"""The resources of this process: CPUs, heaps, threads and memory for requests.

May import `config`, `datatypes`, `errors`, `json_text` and `logs`, but no other package of `cnnserve`.
"""
