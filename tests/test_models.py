import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baseline import PlainCodeFormer
from published import random_state
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cfrestore.errors import ConfigError
from cfrestore.models.codeformer import (
    CodeFormer,
    CodeFormerConfig,
    TransformerLayer,
    adaptive_instance_norm,
)
from cfrestore.models.vqgan import (
    VQGAN,
    Downsample,
    GroupNorm,
    PatchDiscriminator,
    Upsample,
    VectorQuantizer,
    VQGANConfig,
    histogram,
    perplexity,
)

LAYOUTS = {
    "codeformer": CodeFormerConfig(),
    "inpainting": CodeFormerConfig(
        autoencoder=VQGANConfig(codebook_size=512), connect=(32, 64, 128)
    ),
    "colorization": CodeFormerConfig(connect=(32, 64, 128)),
}


def layout(module: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in module.state_dict().items()]


def expected_layout(shared: Path, name: str) -> list[tuple[str, tuple[int, ...]]]:
    table = json.loads((shared / f"spec/statedict_{name}.json").read_text())
    return [(key, tuple(entry["shape"])) for key, entry in table.items()]


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_order_and_shapes_are_the_published_ones(shared: Path, name: str) -> None:
    with torch.device("meta"):
        net = CodeFormer(LAYOUTS[name])
    assert layout(net) == expected_layout(shared, name)


def test_autoencoder_and_discriminator_have_the_published_keys(shared: Path) -> None:
    with torch.device("meta"):
        assert layout(VQGAN()) == expected_layout(shared, "vqgan512")
        assert layout(PatchDiscriminator()) == expected_layout(shared, "discriminator")


def test_taps_are_the_published_ones() -> None:
    with torch.device("meta"):
        net = CodeFormer()
    assert net.encoder.taps == {512: 2, 256: 5, 128: 8, 64: 11, 32: 14, 16: 18}
    assert net.generator.taps == {16: 6, 32: 9, 64: 12, 128: 15, 256: 18, 512: 21}


@pytest.mark.slow
@torch.inference_mode()
def test_outputs_equal_the_published_networks(shared: Path) -> None:
    golden = np.load(shared / "golden/codeformer_seed1001.npz")
    seed = int(golden["input_seed"])
    state = random_state(shared).state(str(shared / "spec/statedict_codeformer.json"), seed)
    with torch.device("meta"):
        net = CodeFormer()
    net.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, assign=True)

    rng = np.random.default_rng(seed)
    x = np.zeros((1, 3, 512, 512))
    for side, amplitude in ((4, 0.5), (16, 0.3), (64, 0.15), (512, 0.05)):
        noise = rng.standard_normal((1, 3, side, side))
        x += amplitude * noise.repeat(512 // side, 2).repeat(512 // side, 3)
    x_ = torch.from_numpy(x.clip(-1, 1).astype(np.float32))

    latent, skips = net.encode(x_)
    np.testing.assert_allclose(latent[0, :, ::4, ::4].numpy(), golden["lq"], atol=1e-3)
    logits = net.predict_codes(latent)
    np.testing.assert_allclose(logits[0, :16].numpy(), golden["logits_first16"], atol=1e-3)
    codes = logits.argmax(-1)
    assert (codes[0].numpy() == golden["codes"]).all()

    quantized = net.lookup(codes)
    matched = adaptive_instance_norm(quantized, latent)
    for w, adain in ((0, 1), (0.5, 1), (1, 1), (0.5, 0)):
        image = net.decode(matched if adain else quantized, skips, w)[0]
        name = f"image_w{w}_adain{adain}"
        area = torch.nn.functional.avg_pool2d(image, 8)
        np.testing.assert_allclose(area.numpy(), golden[f"{name}_area64"], atol=1e-3)
        crop = image[:, 200:264, 300:364]
        np.testing.assert_allclose(crop.numpy(), golden[f"{name}_crop"], atol=1e-3)
    torch.testing.assert_close(net(x_, w=0.5), net.decode(matched, skips, 0.5))


@torch.inference_mode()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("w", [0, 0.5, 1])
@pytest.mark.parametrize("how", [{}, {"recycles": 2, "consensus": 0.5}])
def test_the_network_is_the_one_that_speed_is_measured_against(
    layout: torch.memory_format, w: float, how: dict[str, Any]
) -> None:
    net, x = small_net(match_statistics=True, **how), small_input()
    net.idx_pred_layer[1].weight.mul_(10)  # some codes are more likely than others
    plain = PlainCodeFormer(net.state_dict(), net.config)(x, w)
    torch.testing.assert_close(
        net(x.contiguous(memory_format=layout), w), plain, rtol=0, atol=1e-4 * plain.abs().max()
    )


@torch.inference_mode()
@pytest.mark.parametrize("matches", [True, False])
def test_statistics_are_matched_as_the_configuration_says(matches: bool) -> None:
    net, x = small_net(match_statistics=matches), small_input()
    assert torch.equal(net(x, 0.5), net(x, 0.5, matches))
    assert not torch.equal(net(x, 0.5), net(x, 0.5, not matches))


@torch.inference_mode()
def test_channels_last_is_kept_throughout() -> None:
    net, x = small_net(), small_input().contiguous(memory_format=torch.channels_last)
    broken = []

    def check(module: torch.nn.Module, _: object, y: object) -> None:
        if isinstance(y, Tensor) and y.ndim == 4:
            last = y.is_contiguous(memory_format=torch.channels_last)
            broken.extend([] if last else [type(module).__name__])

    for module in net.modules():
        module.register_forward_hook(check)
    net(x, 0.5)
    assert broken == []


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enlarging_is_nearest_neighbour_and_a_convolution(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer, x = Upsample(8), torch.randn(2, 8, 5, 5).contiguous(memory_format=layout)
    expected = layer.conv(torch.nn.functional.interpolate(x, scale_factor=2))
    torch.testing.assert_close(layer(x), expected)
    gradient = torch.randn_like(expected)
    found = torch.autograd.grad(layer(x), layer.conv.weight, gradient)
    torch.testing.assert_close(found, torch.autograd.grad(expected, layer.conv.weight, gradient))


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 2])
def test_statistics_of_large_maps_keep_their_digits(batch: int) -> None:
    torch.manual_seed(0)
    layer, x = GroupNorm(16, 4), torch.randn(batch, 16, 512, 512) * 2 + 1
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    weight, bias = layer.weight.double(), layer.bias.double()
    exact = torch.nn.functional.group_norm(x.double(), 4, weight, bias, layer.eps)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = layer(x.contiguous(memory_format=layout))
        assert (found - exact).abs().max() < 2e-6 * exact.abs().max()


def small_net(**how: Any) -> CodeFormer:
    torch.manual_seed(0)
    return CodeFormer(replace(CodeFormerConfig.tiny(), **how)).eval()


def small_input(batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 128, 128, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.inference_mode()
def test_w_changes_pixels_and_w0_ignores_the_fusion() -> None:
    net, x = small_net(), small_input()
    at_zero = net(x, w=0)
    assert (net(x, w=1) - at_zero).abs().mean() > 1e-3
    for parameter in net.fuse_convs_dict.parameters():
        parameter.fill_(float("nan"))
    torch.testing.assert_close(net(x, w=0), at_zero, rtol=0, atol=0)
    assert net.decode(net.lookup(torch.zeros(1, 256, dtype=torch.long)), {}, 0).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("w", [math.nan, math.inf, -math.inf])
def test_w_must_be_finite(w: float) -> None:
    net, x = small_net(), small_input()
    features, skips, *_ = net.predict_features(x, True)
    for call in (partial(net, x), partial(net.decode, features, skips)):
        with pytest.raises(ConfigError, match=f"w must be finite, found {w}"):
            call(w)


@torch.inference_mode()
@pytest.mark.parametrize("match", [True, False])
def test_features_are_all_that_comes_before_painting(match: bool) -> None:
    net, x = small_net(), small_input(2)
    features, skips, *_ = net.predict_features(x, match)
    assert set(skips) == {16, 32, 64}
    for w in (0.0, 0.7):
        torch.testing.assert_close(net.decode(features, skips, w), net(x, w, match), rtol=0, atol=0)
    latent, _ = net.encode(x)
    quantized = net.lookup(net.predict_codes(latent).argmax(-1))
    expected = adaptive_instance_norm(quantized, latent) if match else quantized
    torch.testing.assert_close(features, expected, rtol=0, atol=0)


@torch.inference_mode()
def test_what_is_read_again_is_half_the_latent_and_half_what_is_expected() -> None:
    once, thrice = small_net(), small_net(recycles=2)
    latent, _ = once.encode(small_input(2))
    readings = thrice.predictions(latent)
    assert len(readings) == 3
    torch.testing.assert_close(readings[0], once.predict_codes(latent), rtol=0, atol=0)
    vectors = readings[0].softmax(-1) @ once.quantize.embedding.weight  # (B, T, d)
    again = (latent + vectors.mT.reshape(latent.shape)) / 2
    torch.testing.assert_close(readings[1], once.predict_codes(again))
    torch.testing.assert_close(thrice.predict_codes(latent), readings[2], rtol=0, atol=0)
    assert (readings[2] - readings[0]).abs().max() > 1e-3


def test_a_reading_teaches_no_earlier_one() -> None:
    net = small_net(recycles=1)
    latent = torch.randn(1, 64, 16, 16, requires_grad=True)
    first, second = net.predictions(latent)
    again = ((latent + net.expected(first)) / 2).detach().requires_grad_()
    (of_latent,) = torch.autograd.grad(second[..., 0].sum(), latent)
    (alone,) = torch.autograd.grad(net.predictions(again)[0][..., 0].sum(), again)
    torch.testing.assert_close(of_latent, alone / 2)


@pytest.mark.parametrize(("consensus", "chosen"), [(0, 0), (0.1, 0), (1, 2), (3, 2)])
def test_consensus_prefers_a_code_that_others_are_like(consensus: float, chosen: int) -> None:
    net = small_net(consensus=consensus)
    vectors = torch.full((512, 64), 100.0)
    vectors[:4] = torch.tensor([[5.0], [-1.0], [1.0], [0.0]])  # the first is far from the others
    net.quantize.embedding.weight.data.copy_(vectors)
    p = torch.zeros(2, 256, 512)
    p[..., :4] = torch.tensor([0.31, 0.23, 0.23, 0.23])
    assert (net.choose(p.log()) == chosen).all()


@torch.inference_mode()
def test_another_look_multiplies_what_the_input_and_the_expected_face_say() -> None:
    net, x = small_net(consensus=0.5), small_input()
    logits = net.predict_codes(net.encode(x)[0])
    expected = replace(net.config, consensus=1.0)
    draft = CodeFormer(expected)
    draft.load_state_dict(net.state_dict())
    face = draft.eval().decode(net.lookup(draft.choose(logits)), {}, 0)
    both = logits.softmax(-1) * net.predict_codes(net.encode(face)[0]).softmax(-1)
    found = net.reconsider(logits).softmax(-1).square()
    torch.testing.assert_close(
        found / found.sum(-1, keepdim=True), both / both.sum(-1, keepdim=True)
    )
    assert (net.reconsider(logits) - logits).abs().max() > 0.01


@torch.inference_mode()
def test_codes_do_not_depend_on_the_generator() -> None:
    net, x = small_net(), small_input()
    before = net.predict_codes(net.encode(x)[0])
    for parameter in net.generator.parameters():
        parameter.zero_()
    torch.testing.assert_close(net.predict_codes(net.encode(x)[0]), before, rtol=0, atol=0)


@torch.inference_mode()
def test_position_acts_through_queries_and_keys_only() -> None:
    layer = TransformerLayer(32, 4, 64)
    equal = torch.randn(1, 1, 32).expand(2, 9, 32)
    torch.testing.assert_close(layer(equal, torch.zeros(9, 32)), layer(equal, torch.randn(9, 32)))
    varied = torch.randn(2, 9, 32)
    changed = layer(varied, torch.randn(9, 32)) - layer(varied, torch.zeros(9, 32))
    assert changed.abs().max() > 1e-4


def test_downsampling_pads_right_and_bottom_only() -> None:
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    sums = layer(torch.ones(1, 1, 4, 4))[0, 0]
    assert sums.tolist() == [[9, 6], [6, 4]]


def test_adain_gives_the_styles_statistics() -> None:
    content, style = torch.randn(2, 3, 16, 16) * 3 + 1, torch.randn(2, 3, 16, 16) * 0.5 - 2
    out = adaptive_instance_norm(content, style)
    torch.testing.assert_close(out.mean((2, 3)), style.mean((2, 3)))
    variance = content.var((2, 3))
    expected = variance / (variance + 1e-5) * (style.var((2, 3)) + 1e-5)
    torch.testing.assert_close(out.var((2, 3)), expected)


def test_adain_takes_the_unbiased_variance() -> None:
    """Tested where the variance is as small as epsilon; elsewhere both kinds give the same."""
    content, style = torch.tensor([0.0, 0.01]), torch.tensor([0.0, 1.0])
    out = adaptive_instance_norm(content.view(1, 1, 1, 2), style.view(1, 1, 1, 2))
    spread, wanted = (0.01**2 / 2 + 1e-5) ** 0.5, (1 / 2 + 1e-5) ** 0.5
    torch.testing.assert_close(out.flatten(), (content - 0.005) / spread * wanted + 0.5)


def test_quantiser_takes_the_nearest_code_and_passes_the_gradient_through() -> None:
    quantizer = VectorQuantizer(8, 4)
    torch.nn.init.normal_(quantizer.embedding.weight)
    latent = torch.randn(2, 4, 3, 3, requires_grad=True)
    values, codes, vectors = quantizer(latent)
    rows = latent.detach().permute(0, 2, 3, 1).reshape(2, 9, 1, 4)
    brute = (rows - quantizer.embedding.weight.detach()).square().sum(-1).argmin(-1)
    assert (codes == brute).all()
    torch.testing.assert_close(values, quantizer.lookup(codes, 3))
    gradient = torch.randn_like(values)
    values.backward(gradient)
    torch.testing.assert_close(latent.grad, gradient)
    assert quantizer.embedding.weight.grad is None
    vectors.backward(gradient)
    assert quantizer.embedding.weight.grad is not None


def test_quantiser_ties_go_to_the_lowest_index() -> None:
    quantizer = VectorQuantizer(4, 2)
    torch.nn.init.ones_(quantizer.embedding.weight)
    assert quantizer.nearest(torch.zeros(1, 2, 2, 2)).eq(0).all()


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(histogram(torch.arange(16), 16)).item() == pytest.approx(16, rel=1e-4)
    codes = torch.zeros(16, dtype=torch.long)
    assert perplexity(histogram(codes, 16)).item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("config", [CodeFormerConfig.compact(), CodeFormerConfig.tiny()])
def test_small_configurations_keep_their_budget(config: CodeFormerConfig) -> None:
    with torch.device("meta"):
        net = CodeFormer(config)
    assert sum(p.numel() for p in net.parameters()) <= 20e6
    assert config.tokens == 256


def operations(config: CodeFormerConfig, w: float) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        CodeFormer(config)(torch.zeros(1, 3, config.image_size, config.image_size), w=w)
    return counter.get_total_flops()


@pytest.mark.parametrize(("w", "published"), [(1, 810e9), (0, 592e9)])
def test_enlarging_costs_four_ninths_of_what_it_does_published(w: float, published: float) -> None:
    sides = (16, 32, 64, 128, 256)  # before each enlargement, with these numbers of channels:
    taps = [(2 * side * c) ** 2 for side, c in zip(sides, (512, 256, 256, 128, 128), strict=True)]
    saved = 2 * (9 - 4) * sum(taps)
    assert operations(CodeFormerConfig(), w) == pytest.approx(published - saved, rel=0.002)


def test_compact_needs_a_fourteenth_of_the_published_operations() -> None:
    published, compact = (
        operations(config, 1) for config in (CodeFormerConfig(), CodeFormerConfig.compact())
    )
    assert 13 <= published / compact <= 15


def test_config_survives_json_and_names_unknown_keys() -> None:
    config = CodeFormerConfig.tiny()
    assert CodeFormerConfig.from_json(config.to_json()) == config
    plain = CodeFormerConfig.from_json("{}")  # as in files written before these settings existed
    later = ("recycles", "consensus", "second_look", "back_projection", "least_brightness")
    assert [getattr(plain, name) for name in later] == [0] * 5
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        CodeFormerConfig.from_json('{"layer": 3}')
    with pytest.raises(ConfigError, match="not JSON"):
        CodeFormerConfig.from_json("{")
    for text in ('{"width": "wide"}', '{"heads": 0}', '{"autoencoder": 5}'):
        with pytest.raises(ConfigError, match="does not fit"):
            CodeFormerConfig.from_json(text)


def test_config_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="norm_groups"):
        VQGANConfig(base_channels=16)
    with pytest.raises(ConfigError, match="connect"):
        CodeFormerConfig(connect=(48,))
    with pytest.raises(ConfigError, match="heads"):
        CodeFormerConfig(heads=7)
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="consensus"):
            CodeFormerConfig(consensus=wrong)
        with pytest.raises(ConfigError, match="second_look"):
            CodeFormerConfig(second_look=wrong)
        with pytest.raises(ConfigError, match="back_projection"):
            CodeFormerConfig(back_projection=wrong)
        with pytest.raises(ConfigError, match="least_brightness"):
            CodeFormerConfig(least_brightness=wrong)
    with pytest.raises(ConfigError, match="recycles"):
        CodeFormerConfig(recycles=-1)
