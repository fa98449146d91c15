"""The CLIP towers of LanguageBind in torch, for export and training.

vit.py             frames [B, T, 3, H, W] -> hidden states per frame and one pooled embedding
text.py            token ids [B, S] -> one pooled embedding
clip_tokenizer.py  published CLIP tokenizer -> tokenizer.json of a bundle
"""
