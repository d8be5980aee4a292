"""The networks: tensors in, tensors out; torch only.

Nothing here knows files, devices or training stages.
"""
