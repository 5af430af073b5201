"""The seeded recipe that made the `tiny` preset: its language, its model, its dictionaries, and their evaluation.

`python -m recipes.tiny` from the top of the repository makes the whole folder `circuitsae/presets/tiny` again.
"""
