"""Published checkpoints -> bundles: read lazily, recognised by their own keys, written tensor by tensor.

    paths -> sources -> detect -> one layout module -> ConversionPlan -> check -> write -> bundle

A layout module knows the names that one publication gave its weights, and nothing about files or ONNX.
"""
