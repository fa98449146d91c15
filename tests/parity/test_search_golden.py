"""Ranks and scores of a search over the reference's embeddings equal its logits, divided by their scale."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import vidqa
from vidqa.cache.feature_store import FeatureStore
from vidqa.cache.key import CacheKey
from vidqa.cache.media_index import MediaIndex
from vidqa.media.scan import scan
from vidqa.pipeline.run.loaded_model import load_model
from vidqa.pipeline.run.run_options import RunOptions
from vidqa.records import EncodedSegment, Features, MediaFacts

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", ["languagebind_image", "languagebind_video"])
def test_scores_equal_the_logits(name: str, tmp_path: Path) -> None:
    data = load_file(GOLDEN / f"{name}.safetensors")
    images, texts = data["out/image_features_unnormalised"], data["out/text_embeds"]
    scale = math.exp(json.loads((GOLDEN / f"{name}.json").read_text())["config"]["logit_scale"])
    model = load_model("demo", "cpu")
    files = store_embeddings(images, tmp_path, model.bundle.encoder_id)
    for number, text in enumerate(texts):
        # test_languagebind.py compares the text tower itself.
        model.__dict__["text_encoder"] = SimpleNamespace(encode=lambda _, text=text: 3.0 * text[None])
        found = vidqa.search("any", files, model=model, options=RunOptions(cache_dir=tmp_path / "cache"))
        assert (found.n_encoded, len(found.hits)) == (0, len(images))
        order = [files.index(str(Path(hit.root, hit.path))) for hit in found.hits]
        expected = data["out/logits_per_text"][number]
        np.testing.assert_allclose([hit.score * scale for hit in found.hits], expected[order], atol=1e-4 * scale)
        assert order == np.argsort(-expected, kind="stable").tolist()


def store_embeddings(embeddings: np.ndarray, folder: Path, encoder_id: str) -> list[str]:
    """Write one image per embedding, and a cache with the embeddings."""
    store, index = FeatureStore(folder / "cache"), MediaIndex(folder / "cache")
    files = []
    for i, embedding in enumerate(embeddings):
        files.append(str(folder / f"{i}.png"))
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(files[-1])
        media_id = index.media_id(scan([files[-1]]).items[0])
        facts = MediaFacts("image", "png", 4, 4, None, None)
        index.store_facts(media_id, facts)
        features = Features(np.zeros((1, 2, 3), np.float16), embedding.astype(np.float32), False, "image")
        value = EncodedSegment(facts, 0.0, 0.0, (0.0,), (False,), features)
        store.put(CacheKey(media_id, "whole", encoder_id), value)
    index.close()
    return files
