"""The steps that make the bundled demo model; `tools/make_demo.py` runs them in order.

plan.py        sizes and budgets; what every step needs
align.py       contrastive training of vision and text towers
encoders.py    world -> arrays -> towers aligned with language -> ONNX and features
seen.py        towers -> accuracy of the encoders alone on unseen objects
tuning.py      features + conversations -> language model and connector
package.py     weights -> bundle, scores and the page that reports them
"""
