"""`cnnserve evaluate`: how good a model is on labelled images, and how far its probabilities can be believed.

`dataset`: the labelled images. `classes`: their names as the model's classes. `remote`, `local`: what answers, a
running server or a version in this process, behind `runner`. `collection`: takes the answers one at a time. `metrics`:
pure functions. `findings`: what `summary`, `document` and `page` show, as text, JSON and HTML.
"""
