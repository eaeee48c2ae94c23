"""`spidr_jax.load` and what the model gives: alone, in a batch, for long audio, or refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import spidr_jax
from spidr_jax.data import audio
from spidr_jax.inference import model as inference
from spidr_jax.model import model

RANDOM = np.random.default_rng(0)
SHORT, LONG = (RANDOM.uniform(-0.5, 0.5, n).astype(np.float32) for n in (7_000, 15_500))


@pytest.fixture(scope="module", params=["layer_norm", "group_norm"])
def speech(request: Any, tmp_path_factory: pytest.TempPathFactory) -> inference.SpeechModel:
    run = tmp_path_factory.mktemp(request.param) / "run"
    tiny.write_run(run, extractor_mode=request.param)
    return spidr_jax.load(run)


def test_the_outputs_are_the_models(speech: inference.SpeechModel) -> None:
    nets = model.build(speech.config)
    x = jnp.asarray(audio.standardised(LONG))[None]
    feats, _ = model.extract(nets, speech.params, x)
    final, outputs = model.encode(nets, speech.params["student"], feats)
    logits = model.predict(nets, speech.params, final, outputs)
    features = speech.features(LONG, layer=(1, 3))
    assert features.shape == (2, 48, 32)
    np.testing.assert_allclose(features[0], outputs[0][0], atol=1e-5)
    np.testing.assert_allclose(features[1], outputs[2][0], atol=1e-5)
    codebooks = speech.codebooks(LONG)
    assert codebooks.shape == (2, 48, 8)
    np.testing.assert_allclose(codebooks.sum(axis=-1), 1, atol=1e-5)
    units = speech.units(LONG, layer=3)
    assert units.shape == (48,)
    np.testing.assert_array_equal(units, logits[1, 0].argmax(axis=-1))
    np.testing.assert_array_equal(units, codebooks[1].argmax(axis=-1))
    np.testing.assert_array_equal(units, speech.codebooks(LONG, layer=3).argmax(axis=-1))
    assert speech.step == 5


def test_a_padded_batch_gives_each_utterance_what_it_gets_alone(
    speech: inference.SpeechModel,
) -> None:
    batch = np.full((3, 16_000), 0.9, np.float32)  # what lies in the padding does not matter
    batch[0, : len(SHORT)], batch[1, : len(LONG)], batch[2, :9_000] = SHORT, LONG, LONG[:9_000]
    lengths = np.array([len(SHORT), len(LONG), 9_000])
    together = speech.features(jnp.asarray(batch), layer=2, lengths=lengths)
    assert together.shape == (3, 49, 32)
    for row, wave in enumerate((SHORT, LONG, LONG[:9_000])):
        alone = speech.features(wave, layer=2)
        np.testing.assert_allclose(together[row, : len(alone)], alone, atol=1e-4)
        assert not together[row, len(alone) :].any()
    units = speech.units(batch, layer=2, lengths=lengths)
    assert (units[0, speech.num_frames(len(SHORT)) :] == -1).all()
    np.testing.assert_array_equal(units[1, :48], speech.units(LONG, layer=2))


def test_int16_and_standardised_audio_give_the_same(speech: inference.SpeechModel) -> None:
    pcm = np.rint(SHORT * 32_768).astype(np.int16)
    expected = speech.features(pcm, layer=2)
    np.testing.assert_allclose(speech.features(pcm / 32_768, layer=2), expected, atol=1e-4)
    wave = audio.standardised(pcm / 32_768)
    given = speech.features(wave, layer=2, standardised=True)
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_long_audio_is_cut_with_context(tmp_path: Path) -> None:
    tiny.write_run(tmp_path / "run")
    long = RANDOM.standard_normal(200_000).astype(np.float32)
    speech = spidr_jax.load(tmp_path / "run", max_seconds=6)
    features = speech.features(long, layer=2)
    assert features.shape == (speech.num_frames(200_000), 32)
    whole = spidr_jax.load(tmp_path / "run").features(long, layer=2)
    assert np.linalg.norm(features - whole) < 0.05 * np.linalg.norm(whole)  # attention saw less
    shape = speech.units(np.stack([long, long]), layer=2, lengths=[200_000, 7_000]).shape
    assert shape == (2, speech.num_frames(200_000))


def test_few_shapes_are_compiled(tmp_path: Path) -> None:
    tiny.write_run(tmp_path / "run")
    speech = spidr_jax.load(tmp_path / "run")
    for samples in range(6_200, 7_000, 100):
        speech.units(LONG[:samples], layer=2)
    assert speech.forward("units", (2,))._cache_size() == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((SHORT, 2), {"sample_rate": 44_100}, "sample_rate = 44100: allowed is 16000"),
        ((SHORT[:300], 2), {}, "an utterance of 300 samples gives no frame"),
        ((SHORT.astype(np.int32), 2), {}, "allowed is int16, or finite"),
        ((SHORT[None, None], 2), {}, r"shape \(1, 1, 7000\)"),
        ((np.stack([SHORT, SHORT]).T, 2), {}, r"\(7000, 2\); .* not \[samples, channels"),
        ((np.zeros((3, 300)), 2), {}, "an utterance of 300 samples gives no frame"),
        ((SHORT[None], 2), {"lengths": [7_001]}, "from 0 to 7000 for each"),
        ((SHORT[None], 2), {"lengths": [3, 4]}, "for each of 1 rows"),
        ((np.full(7_000, np.nan), 2), {}, "finite"),
        ((SHORT, 4), {}, "layer 4: features are there for layers 1 to 3"),
    ],
)
def test_what_it_cannot_take_is_refused(
    speech: inference.SpeechModel, arguments: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        speech.features(*arguments, **options)


@pytest.mark.parametrize("layer", [3.0, "12", None, [1.5]])
def test_layers_that_are_no_integers_are_refused(speech: inference.SpeechModel, layer: Any) -> None:
    with pytest.raises(TypeError):
        speech.units(SHORT, layer=layer)


def test_integers_of_numpy_are_layers(speech: inference.SpeechModel) -> None:
    for layer, shape in ((np.int64(2), (21,)), (np.array([2, 3]), (2, 21))):
        assert speech.units(SHORT, layer=layer).shape == shape  # type: ignore[arg-type]


def test_layers_without_a_head_have_no_units(speech: inference.SpeechModel) -> None:
    with pytest.raises(ValueError, match="layer 1: units are there for layers 2 to 3"):
        speech.units(SHORT, layer=1)


def test_dinosr_reads_all_heads_from_its_last_layer(tmp_path: Path) -> None:
    config = tiny.write_run(tmp_path / "run", model_type="dinosr", encoder_layer_norm_first=True)
    speech = spidr_jax.load(tmp_path / "run")
    nets = model.build(config)
    feats, _ = model.extract(nets, speech.params, jnp.asarray(audio.standardised(SHORT))[None])
    logits = model.predict(
        nets, speech.params, *model.encode(nets, speech.params["student"], feats)
    )
    np.testing.assert_array_equal(speech.units(SHORT, layer=2), logits[0, 0].argmax(axis=-1))


def test_nothing_there_and_damage_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        spidr_jax.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        spidr_jax.load(tmp_path)
    tiny.write_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7" / "state").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"7: cannot be read: .*; other checkpoints beside it: 5"):
        spidr_jax.load(tmp_path / "run")
    assert spidr_jax.load(tmp_path / "run" / "checkpoints" / "5").step == 5


def test_loading_needs_no_training_code(tmp_path: Path) -> None:
    tiny.write_run(tmp_path / "run")
    code = (
        "import sys; import spidr_jax; assert 'jax' not in sys.modules;"
        f"spidr_jax.load({str(tmp_path / 'run')!r});"
        "names = ['method', 'train'];"
        "assert not [n for n in names if 'spidr_jax.' + n in sys.modules];"
        "assert not {'orbax', 'torch', 'optax', 'grain'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
