"""Published checkpoints become bundles: detected by their keys, read lazily, written tensor by tensor.

    paths -> sources -> detect -> formats/<layout> -> ConversionPlan -> write -> bundle

sources.py, lazy_tensors.py   files of weights and the tensors to be read from them
detect.py, formats/           which published layout the parts make, and what each key of it means
plan.py, checks.py            the complete model as a plan, checked before anything is read
write.py, tokenizer.py        the bundle: LLM shards, exported encoders, tokenizer
published.py, hub.py          models that can be pulled and their download
"""
