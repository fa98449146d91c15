"""The only code that knows more than one stage: it joins media, encoders, cache, prompts, model and tables.

describe:  scan -> feed (known? cached? else decode) -> encode -> answer -> table
encode:    scan -> feed -> encode
ask:       scan -> feed -> encode -> answer
"""
