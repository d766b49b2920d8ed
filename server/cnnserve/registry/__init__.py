"""All models: their versions, how one replaces another, who may change them, who is told and what can be measured.

May import `model` and the rooms below it.
"""
