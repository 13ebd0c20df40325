"""The rooms that know tinygrad inside: the import hook, the patches, capture.

`compat.py` lists every name of tinygrad's that these modules lean on.
"""
