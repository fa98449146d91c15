"""Published checkpoints -> bundles: read lazily, recognised by their own keys, written tensor by tensor.

    paths -> source -> identify -> one layout module -> Recipe -> check -> write -> bundle

A layout module knows the names that one publication gave its weights, and nothing about files or ONNX.
"""
