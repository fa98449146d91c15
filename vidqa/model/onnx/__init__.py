"""ONNX: towers -> graphs, checked against torch, and what can be read back from graphs.

export.py             tower -> ONNX file and report
export_modules.py     the towers in a form that exports cleanly
onnx_io.py            tracing, fusing, external data
external_data.py      ONNX file -> names of the external data files it reads; needs no onnx package
weights_from_onnx.py  exported vision graph -> weights under CLIP's names
"""
