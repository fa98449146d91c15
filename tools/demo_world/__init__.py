"""The demo world: seed -> scene -> frames and true sentences about them.

    scene.py      seed -> Scene (objects, motions, background, camera)
    render.py     Scene -> uint8 frames
    language.py   Scene -> captions, questions, correct answers; text -> its claims (for scoring)
    write.py      scenes -> MP4 / PNG files and LLaVA-format JSON

Scope: no model code of vidqa, except for encoder alignment in alignment.py and variety.py.
"""
