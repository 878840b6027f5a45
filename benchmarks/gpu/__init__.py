"""What we want measured on one large GPU, in parts of at most four minutes: ``python -m benchmarks.gpu``.

Without CUDA the same parts run at small size, to see that they run.
"""
