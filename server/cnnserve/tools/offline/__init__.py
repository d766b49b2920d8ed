"""Classifies stored images on the machines of a Ray cluster: `cnnserve classify --ray` and `classify_dataset`.

Only `data` imports ray and pyarrow.
"""
