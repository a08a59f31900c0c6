"""The engine's steps on a GPU: launched, and waited for when their tokens are needed.

Steps that only decode are CUDA graphs (HIP's on AMD), each one launch; while one runs the next is prepared and launched
behind it, which takes its tokens on the GPU. All others are launched operation by operation.

Imported where a model lies on a GPU, as it needs Triton.
"""
