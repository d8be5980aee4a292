"""The networks: tensors in, tensors out; torch only.

Nothing here depends on files, devices or training stages.
"""
