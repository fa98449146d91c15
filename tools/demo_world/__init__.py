"""The demo world: seed -> scene -> frames and true sentences about them.

    scene.py      seed -> Scene (objects, motions, background, camera)
    render.py     Scene -> uint8 frames
    language.py   Scene -> captions, questions, true answers; text -> what it claims (for scoring)
    write.py      scenes -> MP4 / PNG files and LLaVA-format JSON

Nothing here knows vidqa's model code.
"""
