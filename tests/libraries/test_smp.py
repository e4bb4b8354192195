import copy
import importlib.util
import json
import os
import subprocess
import sys
from unittest import mock

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from locations import PROJECT
from segmentation_models_pytorch.encoders.densenet import DenseNetEncoder
from tiny_nets import randomise_norms, tiny_fields
from torch import nn

from densenet_backbones import smp_encoders
from densenet_backbones.densenet import DenseNet
from densenet_backbones.smp_encoders import DenseFeatureEncoder, PadToStride, register_encoder
from densenet_backbones.timm_models import SUFFIX
from densenet_backbones.variants import VARIANTS

REGISTRY = smp.encoders.encoders
NATIVE = [name for name, entry in REGISTRY.items() if entry["encoder"] is DenseFeatureEncoder]
# PSPNet wants channels in multiples of its four pyramid levels.
TINY = {"growth_rate": 4, "block_config": (2, 2, 2, 2), "num_init_features": 8}
DECODERS = list(smp.MODEL_ARCHITECTURES_MAPPING)
# Decoders with a choice of the encoder's output stride, and DPT, which takes tu- names only.
DILATED = {"deeplabv3": (8, 16), "deeplabv3plus": (8, 16), "pan": (16, 32)}
ODD = (131, 154)  # PAN's pyramid halves a sixteenth of the image three times


@pytest.fixture(autouse=True)
def _registry():
    """A native ``tiny``; names that a test registers are gone after it."""
    torch.manual_seed(0)
    with mock.patch.dict(REGISTRY):
        register_encoder("tiny", **TINY)
        yield


def encoder_of(name="tiny", **arguments):
    return randomise_norms(smp.encoders.get_encoder(name, **arguments)).eval()


def model_of(decoder, name="tiny", **arguments):
    if name.startswith("tu-"):
        arguments |= TINY
    if decoder == "dpt":
        arguments |= {"decoder_readout": "ignore", "decoder_fusion_channels": 16}
        arguments |= {"decoder_intermediate_channels": (4, 4, 8, 8)}
    return smp.create_model(decoder, name, encoder_weights=None, classes=2, **arguments)


def maps_of(encoder, x):
    with torch.no_grad():
        return encoder(x)


def assert_equal_maps(ours, theirs):
    assert len(ours) == len(theirs)
    assert [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)] == [True] * len(ours)


# -- the encoder --------------------------------------------------------------------------------


def test_names_are_those_of_variants_with_smps_strides():
    expected = {f"densenet{d}{SUFFIX}" for d in (121, 161, 169, 201, 264, "264d", "blur121d")}
    assert expected <= set(NATIVE) and "densenet232_k48_features" in NATIVE
    for variant, spec in VARIANTS.items():
        strides = [spec.stem_stride, *(plan.stride for plan in spec.blocks)]
        # Of equal strides the last map is read.
        assert (variant + SUFFIX in NATIVE) == ([*dict.fromkeys(strides)] == [2, 4, 8, 16, 32])
        if variant + SUFFIX in NATIVE:
            params = REGISTRY[variant + SUFFIX]["params"]
            assert params == {"spec": spec, "tap": "raw", "memory": "none"}


def test_the_published_net():
    model = smp.Unet("densenet121_features", encoder_weights=None).eval()
    assert model.encoder.out_channels == [3, 64, 256, 512, 1024, 1024]
    assert maps_of(model, torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert sum(p.numel() for p in model.encoder.parameters()) == 6_953_856


@pytest.mark.parametrize("name", NATIVE)
def test_contract(name):
    register_encoder("small", name.removesuffix(SUFFIX), **tiny_fields(name))
    blocks = len(tiny_fields(name)["block_config"])
    for depth in range(1, 6):
        encoder = encoder_of("small", depth=depth, in_channels=depth)
        maps = maps_of(encoder, torch.rand(1, depth, 64, 96))
        assert [64 // m.shape[2] for m in maps] == [1, 2, 4, 8, 16, 32][: depth + 1]
        assert [96 // m.shape[3] for m in maps] == [1, 2, 4, 8, 16, 32][: depth + 1]
        assert [m.shape[1] for m in maps] == encoder.out_channels
        assert encoder.output_stride == 2**depth
        # Nothing stands behind the last map.
        assert not hasattr(encoder.model, f"denseblock{depth + blocks - 4}")


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_net_holds_the_cells_of_the_undilated(name, stride):
    register_encoder("small", name.removesuffix(SUFFIX), **tiny_fields(name))
    coarse = encoder_of("small").double()
    fine = encoder_of("small", output_stride=stride).double()
    fine.load_state_dict(coarse.state_dict())
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    assert fine.output_stride == stride
    for a, b, s in zip(maps_of(coarse, x), maps_of(fine, x), (1, 2, 4, 8, 16, 32), strict=True):
        assert b.shape[2:] == (64 // min(s, stride), 96 // min(s, stride))
        step = max(s // stride, 1)
        assert (a - b[..., ::step, ::step]).abs().max() < 1e-12
    assert coarse.out_channels == fine.out_channels


@pytest.mark.parametrize("variant", ["densenet121", "densenetblur121d"])
def test_make_dilated_keeps_weights_and_their_state(variant):
    register_encoder("small", variant, memory="layer", tap="norm", **TINY)
    encoder = encoder_of("small", in_channels=2, depth=4).double().train()
    encoder.model.freeze(2)
    weights = dict(encoder.named_parameters())
    trained = {name: p.requires_grad for name, p in weights.items()}
    modes = [module.training for module in encoder.model.modules()]
    assert len(set(trained.values())) == len(set(modes)) == 2
    x = torch.rand(1, 2, 32, 64, dtype=torch.float64)
    before = maps_of(copy.deepcopy(encoder).eval(), x)

    encoder.make_dilated(8)
    assert all(weights[name] is p for name, p in encoder.named_parameters())
    assert {name: p.requires_grad for name, p in weights.items()} == trained
    assert [module.training for module in encoder.model.modules()] == modes
    assert (encoder.model.memory, encoder.model.frozen_stages) == ("layer", 2)
    assert encoder.output_stride == 8
    after = maps_of(copy.deepcopy(encoder).eval(), x)
    assert after[-1].shape[2:] == (4, 8) and before[-1].shape[2:] == (2, 4)
    assert (after[-1][..., ::2, ::2] - before[-1]).abs().max() < 1e-12

    encoder.make_dilated(32)
    assert_equal_maps(maps_of(encoder.eval(), x), before)


def test_depth_and_stride_out_of_range():
    for depth in (0, 6):
        with pytest.raises(ValueError, match=f"1 to 5, got {depth}"):
            smp.encoders.get_encoder("tiny", depth=depth)
    with pytest.raises(ValueError, match="one of 8, 16, 32, got 4"):
        smp.encoders.get_encoder("tiny", output_stride=4)
    with pytest.raises(ValueError, match="got 64"):
        encoder_of().make_dilated(64)


def test_more_or_fewer_channels_once():
    first = DenseNet(REGISTRY["tiny"]["params"]["spec"]).conv0.weight
    encoder = encoder_of(in_channels=5)
    assert encoder.out_channels[0] == 5 and encoder.model.conv0.weight.shape == (8, 5, 7, 7)
    with pytest.raises(ValueError, match="not from 5 to 4"):
        encoder.set_in_channels(4)
    with pytest.raises(ValueError, match="not from 3 to 0"):
        encoder_of().set_in_channels(0)
    for channels, expected in ((1, first.sum(1, keepdim=True)), (2, first[:, :2] * 1.5)):
        encoder = encoder_of()
        encoder.model.conv0.weight = nn.Parameter(first.detach().clone())
        encoder.set_in_channels(channels)
        assert torch.allclose(encoder.model.conv0.weight, expected)


def test_flags_of_what_torch_can_do_are_true():
    register_encoder("frugal", tap="norm", memory="block", **TINY)
    encoder = encoder_of("frugal", output_stride=16)
    x = torch.rand(2, 3, 64, 96)
    wanted = maps_of(encoder, x)
    assert encoder._is_torch_scriptable
    assert_equal_maps(maps_of(torch.jit.script(copy.deepcopy(encoder)), x), wanted)
    assert encoder._is_torch_exportable
    sizes = {"x": {0: torch.export.Dim("n", max=9), 2: torch.export.Dim.AUTO}}
    exported = torch.export.export(encoder, (x,), dynamic_shapes=sizes).module()
    assert_equal_maps(maps_of(exported, x[:1]), maps_of(encoder, x[:1]))
    assert encoder._is_torch_compilable
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    assert_equal_maps(maps_of(compiled, x), wanted)


def test_scripting_leaves_a_model_that_runs():
    model = model_of("unet").eval()
    x = torch.rand(1, 3, 67, 90)
    wanted = maps_of(model, x)
    scripted = torch.jit.script(model)
    assert torch.equal(maps_of(scripted, x), wanted)
    assert torch.equal(maps_of(model.train().eval(), x), wanted)


def test_freezing_by_smp_and_by_stages():
    model = model_of("unet").train()
    net, stem = model.encoder.model, model.encoder.model.conv0.weight
    last, norm = net.denseblock4.denselayer1.conv1.weight, net.denseblock4.denselayer1.norm1
    net.freeze(2)
    assert not stem.requires_grad and last.requires_grad and not net.norm0.training

    model.freeze_encoder()
    model.train()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not norm.training and model.decoder.training
    statistics = norm.running_mean.clone()
    model(torch.rand(2, 3, 64, 64))
    assert torch.equal(norm.running_mean, statistics)

    model.unfreeze_encoder()
    model.train()
    assert last.requires_grad and norm.training
    assert not stem.requires_grad and not net.norm0.training  # freeze(2) still holds
    net.freeze(0)
    model.train()
    assert all(p.requires_grad for p in model.encoder.parameters()) and net.norm0.training


# -- registration -------------------------------------------------------------------------------


def test_arguments_reach_the_net():
    register_encoder("mine", "densenet169", tap="compressed", memory="block", norm="group", **TINY)
    net = smp.encoders.get_encoder("mine").model
    assert (net.tap, net.memory, net.spec.norm) == ("compressed", "block", "group")
    assert net.spec.growth_rate == 4 and isinstance(net.norm0, nn.GroupNorm)
    assert net.out_channels == [8, 8, 8, 8, 16]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("tiny", {}, "'tiny' already; choose another"),
        ("resnet18", {}, "'resnet18' already"),
        ("tu-mine", {}, "'tu-mine' among its native"),
        ("timm-mine", {}, "does not begin with"),
        ("mine", {"variant": "densenet122"}, "got 'densenet122'; did you mean 'densenet121'"),
        ("mine", {"variant": "dsod"}, r"this network's are \(2, 4, 8, 16, 16\)"),
        ("mine", {"block_config": (2, 2, 2)}, r"this network's are \(2, 4, 8, 16\)"),
        ("mine", {"tap": "pooled"}, "got 'pooled'"),
        ("mine", {"memory": "all"}, "got 'all'"),
        ("mine", {"output_stride": 8}, "encoder_output_stride"),
        ("mine", {"growth": 4}, "no field 'growth'"),
        ("mine", {"growth_rate": 0}, "growth_rate must be"),
    ],
)
def test_what_cannot_be_registered(name, arguments, words):
    before = dict(REGISTRY)
    with pytest.raises(ValueError, match=words):
        register_encoder(name, **arguments)
    assert before == REGISTRY


def test_without_smp_there_is_one_clear_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.encoders", None)
    spec = importlib.util.spec_from_file_location("again", smp_encoders.__file__)
    with pytest.raises(ImportError, match="pip install segmentation-models-pytorch"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_models_are_saved_and_restored(tmp_path):
    model = model_of("fpn", in_channels=2).eval()
    model.save_pretrained(tmp_path)
    x = torch.rand(1, 2, 64, 64)
    assert torch.equal(maps_of(smp.from_pretrained(tmp_path).eval(), x), maps_of(model, x))


# -- decoders -----------------------------------------------------------------------------------


def train_one_step(model, side):
    """Steps once; the encoder's parameters that the step left as they were."""
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    masks = model.train()(torch.rand(2, 3, side, side))
    assert masks.shape == (2, 2, side, side)
    F.cross_entropy(masks, torch.randint(2, (2, side, side))).backward()
    optimizer.step()
    return [name for name, p in model.encoder.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - {"dpt"}))
def test_native_names_train_in_every_decoder(decoder):
    assert train_one_step(model_of(decoder), 128 if decoder == "pan" else 64) == []


def test_dpt_takes_universal_names_only():
    with pytest.raises(ValueError, match="must start with 'tu-'"):
        model_of("dpt")


TU_PROGRAM = """
import sys
import torch
import densenet_backbones
import segmentation_models_pytorch as smp

torch.manual_seed(0)
dpt = {"decoder_readout": "ignore", "decoder_fusion_channels": 16}
dpt["decoder_intermediate_channels"] = (4, 4, 8, 8)
for decoder in smp.MODEL_ARCHITECTURES_MAPPING:
    arguments = dpt if decoder == "dpt" else {}
    side = 128 if decoder == "pan" else 64
    model = smp.create_model(
        decoder, "tu-densenet121_features", encoder_weights=None, **arguments,
        growth_rate=4, block_config=(2, 2, 2, 2), num_init_features=8,
    )
    before = {name: p.detach().clone() for name, p in model.encoder.named_parameters()}
    masks = model(torch.rand(2, 3, side, side))
    masks.square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    same = [name for name, p in model.encoder.named_parameters() if torch.equal(p, before[name])]
    print(decoder, masks.shape == (2, 1, side, side), len(before) > 60 or decoder == "pspnet", same)
print("densenet_backbones.smp_encoders" in sys.modules)
"""


def test_universal_names_train_in_every_decoder_with_the_package_root_alone():
    path = os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TU_PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(DECODERS) >= 12
    assert done.stdout.splitlines() == [f"{d} True True []" for d in DECODERS] + ["False"]


@pytest.mark.parametrize("name", ["tiny", "tu-densenet121_features"])
@pytest.mark.parametrize(
    ("decoder", "stride"), [(decoder, s) for decoder in DILATED for s in DILATED[decoder]]
)
def test_decoders_get_the_output_stride_they_ask_for(decoder, stride, name):
    model = model_of(decoder, name, encoder_output_stride=stride).eval()
    assert model.encoder.output_stride == stride
    sides = [m.shape[2] for m in maps_of(model.encoder, torch.rand(1, 3, 64, 64))]
    assert sides == [64 // min(s, stride) for s in (1, 2, 4, 8, 16, 32)]


# -- any image size -----------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - {"unet"}))
def test_only_unet_takes_odd_sizes(decoder):
    x = torch.rand(1, 3, *ODD)
    assert maps_of(model_of("unet").eval(), x).shape == (1, 2, *ODD)
    with pytest.raises(RuntimeError, match="Wrong input shape height=131, width=154"):
        model_of(decoder, "tu-densenet121_features").eval()(x)


def test_traced_models_return_other_sizes_unchecked():
    x = torch.rand(1, 3, *ODD)
    model = model_of("segformer").eval()
    assert maps_of(torch.jit.trace(model, x, check_trace=False), x).shape != (1, 2, *ODD)
    padded = PadToStride(model).eval()
    traced = torch.jit.trace(padded, x, check_trace=False)
    assert torch.equal(maps_of(traced, x), maps_of(padded, x))


@pytest.mark.parametrize("decoder", DECODERS)
def test_padded_models_equal_models_of_the_padded_image(decoder):
    model = model_of(decoder, "tu-densenet121_features").eval()
    x = torch.rand(2, 3, *ODD)
    stride = model.encoder.output_stride
    by_hand = F.pad(x, (0, -ODD[1] % stride, 0, -ODD[0] % stride))
    masks = maps_of(PadToStride(model), x)
    assert masks.shape == (2, 2, *ODD)
    assert torch.equal(masks, maps_of(model, by_hand)[..., : ODD[0], : ODD[1]])


@pytest.mark.parametrize(
    ("arguments", "same"),
    [
        ({"mode": "reflect"}, {"mode": "reflect"}),
        ({"mode": "replicate"}, {"mode": "replicate"}),
        ({"value": 0.5}, {"value": 0.5}),
    ],
)
def test_borders(arguments, same):
    model = model_of("fpn").eval()
    x = torch.rand(1, 3, 67, 90)
    masks = maps_of(PadToStride(model, **arguments), x)
    assert torch.equal(masks, maps_of(model, F.pad(x, (0, 6, 0, 29), **same))[..., :67, :90])
    assert not torch.equal(masks, maps_of(PadToStride(model), x))


def test_padded_models_with_labels_and_with_coarser_masks():
    x = torch.rand(2, 3, 67, 90)
    model = model_of("linknet", aux_params={"classes": 5}).eval()
    masks, labels = maps_of(PadToStride(model), x)
    assert masks.shape == (2, 2, 67, 90) and labels.shape == (2, 5)
    model = model_of("fpn", upsampling=1).eval()
    assert maps_of(PadToStride(model), x).shape == (2, 2, 17, 23)
    model = model_of("fpn", upsampling=8).eval()
    with pytest.raises(ValueError, match="masks 192 high for images 96 high"):
        PadToStride(model)(x)


def test_padded_models_keep_what_users_reach_for():
    padded = PadToStride(model_of("fpn"))
    assert padded.encoder is padded.model.encoder and padded.stride == 32
    padded.train()
    masks = padded.predict(torch.rand(1, 3, 67, 90))
    assert masks.shape == (1, 2, 67, 90) and masks.is_inference() and not padded.model.training
    padded.model.freeze_encoder()
    assert not any(p.requires_grad for p in padded.train().encoder.parameters())


@pytest.mark.long
def test_padded_models_are_scripted_exported_and_compiled():
    padded = PadToStride(model_of("deeplabv3")).eval()
    x = torch.rand(2, 3, 67, 90)
    wanted = maps_of(padded, x)
    sizes = {"x": {0: torch.export.Dim("n", max=9)}}
    exported = torch.export.export(padded, (x,), dynamic_shapes=sizes).module()
    assert torch.equal(maps_of(exported, x), wanted)
    assert maps_of(exported, torch.rand(3, 3, 67, 90)).shape == (3, 2, 67, 90)
    compiled = torch.compile(padded, backend="eager", fullgraph=True)
    assert torch.equal(maps_of(compiled, x), wanted)
    scripted = torch.jit.script(copy.deepcopy(padded))
    for size in ((67, 90), (96, 64)):
        x = torch.rand(1, 3, *size)
        assert torch.equal(maps_of(scripted, x), maps_of(padded, x))


def test_what_cannot_be_padded():
    with pytest.raises(ValueError, match=r"encoder.output_stride, got Conv2d"):
        PadToStride(nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match="got 'circular'"):
        PadToStride(model_of("fpn"), mode="circular")
    with pytest.raises(ValueError, match=r"value=0\.5 has no effect with mode='reflect'"):
        PadToStride(model_of("fpn"), mode="reflect", value=0.5)


# -- weights ------------------------------------------------------------------------------------


def test_the_norm_tap_equals_smps_own_encoder():
    theirs = encoder_of("densenet121")
    register_encoder("norm121", tap="norm")
    ours = smp.encoders.get_encoder("norm121").eval()
    ours.load_state_dict(theirs.state_dict())
    before_relu = []
    ours.model.norm5.register_forward_hook(lambda *call: before_relu.append(call[-1].clone()))
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        *our_maps, our_last = ours(x)
        *their_maps, their_last = theirs(x)
    assert_equal_maps(our_maps, their_maps)
    assert their_last.min() < 0
    assert torch.equal(before_relu[0], their_last) and torch.equal(our_last, their_last.relu())


def test_models_of_both_routes_exchange_weights():
    universal = randomise_norms(model_of("unet", "tu-densenet121_features")).eval()
    native = model_of("unet").eval()
    assert list(native.state_dict()) == list(universal.state_dict())
    native.load_state_dict(universal.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(maps_of(native, x), maps_of(universal, x))


def test_whole_models_of_smps_own_encoders_load():
    params = {"out_channels": [3, 8, 16, 16, 16, 16], **TINY}
    REGISTRY["theirs"] = {"encoder": DenseNetEncoder, "params": params}
    theirs = randomise_norms(model_of("unet", "theirs")).eval()
    ours = model_of("unet").eval()
    ours.load_state_dict(theirs.state_dict())
    for name, weight in theirs.decoder.state_dict().items():
        assert torch.equal(ours.decoder.state_dict()[name], weight)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(maps_of(ours.encoder, x)[-1], maps_of(theirs.encoder, x)[-1].relu())


def dotted(weights):
    """The names of torchvision's published files."""
    found = {}
    for key, value in weights.items():
        for part in ("norm", "relu", "conv"):
            for number in "12":
                if "denselayer" in key:
                    key = key.replace(f".{part}{number}.", f".{part}.{number}.")
        if not key.endswith("num_batches_tracked"):
            found[key] = value
    return found


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub with the weights of one timm net, and a list of what was asked of it."""
    # timm's stem has twice the growth rate's channels, as TINY's.
    theirs = randomise_norms(timm.create_model("densenet121", growth_rate=4, block_config=(2,) * 4))
    asked = []

    def download(repo_id, filename, revision):
        asked.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr(smp.encoders, "hf_hub_download", download)
    (tmp_path / "config.json").write_text(json.dumps({"mean": [1, 2, 3], "std": [4, 5, 6]}))
    theirs.asked = asked
    theirs.save = lambda weights: safetensors.torch.save_file(
        {key: value.contiguous() for key, value in weights.items()}, tmp_path / "model.safetensors"
    )
    theirs.save(theirs.state_dict())
    return theirs


def test_settings_are_those_of_timm_and_smp():
    for name in NATIVE:
        variant = name.removesuffix(SUFFIX)
        names = timm.list_pretrained(f"{variant}.*")
        tags = {n.partition(".")[2]: timm.get_pretrained_cfg(n).hf_hub_id for n in names}
        settings = REGISTRY[name]["pretrained_settings"]
        smps_own = REGISTRY.get(variant, {}).get("pretrained_settings", {})
        assert {tag: s["repo_id"] for tag, s in settings.items() if tag != "imagenet"} == tags
        assert settings.get("imagenet") == smps_own.get("imagenet")
    assert set(REGISTRY["densenet121_features"]["pretrained_settings"]) == {
        "imagenet", "ra_in1k", "tv_in1k",
    }  # fmt: skip


@pytest.mark.parametrize("naming", [dict, dotted])
@pytest.mark.parametrize("tag", ["ra_in1k", "tv_in1k", "imagenet"])
def test_published_weights_load(hub, tag, naming):
    hub.save(naming(hub.state_dict()))
    encoder = smp.Unet("tiny", encoder_weights=tag).encoder.eval()
    setting = REGISTRY["tiny"]["pretrained_settings"][tag]
    assert {repo for repo, _, _ in hub.asked} == {setting["repo_id"]}
    assert {revision for _, _, revision in hub.asked} == {setting["revision"]}
    x = torch.rand(1, 3, 64, 64)
    theirs = maps_of(lambda x: hub.eval().forward_intermediates(x, intermediates_only=True), x)
    assert_equal_maps(maps_of(encoder, x)[1:], theirs)


def test_published_weights_load_into_less_depth_other_channels_and_dilated_nets(hub):
    model = smp.PSPNet("tiny", encoder_weights="tv_in1k", encoder_depth=3, in_channels=1)
    weight = hub.features.conv0.weight.sum(1, keepdim=True)
    assert torch.equal(model.encoder.model.conv0.weight, weight)
    fine = smp.DeepLabV3("tiny", encoder_weights="tv_in1k").encoder.double().eval()
    coarse = smp.Unet("tiny", encoder_weights="tv_in1k").encoder.double().eval()
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    difference = maps_of(fine, x)[-1][..., ::4, ::4] - maps_of(coarse, x)[-1]
    assert difference.abs().max() < 1e-12


def test_weights_that_do_not_fit_are_refused(hub):
    weights = hub.state_dict()
    del weights["features.denseblock2.denselayer1.conv1.weight"]
    hub.save(weights)
    with pytest.raises(RuntimeError, match=r"Missing.*denseblock2\.denselayer1\.conv1\.weight"):
        smp.Unet("tiny", encoder_weights="tv_in1k")
    hub.save({**hub.state_dict(), "features.other.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match=r"Unexpected.*other\.weight"):
        smp.Unet("tiny", encoder_weights="tv_in1k")
    with pytest.raises(KeyError, match="Available options"):
        smp.Unet("tiny", encoder_weights="tv_in22k")


def test_preprocessing(hub):
    expected = {
        "input_space": "RGB",
        "input_range": [0, 1],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    ask = smp.encoders.get_preprocessing_params
    assert ask("densenet121_features", "tv_in1k") == expected
    assert ask("densenetblur121d_features", "ra_in1k") == expected
    assert ask("tu-densenet121_features") == ask("tu-densenet121_features.tv_in1k") == expected
    assert hub.asked == []
    image = torch.full((4, 4, 3), 255, dtype=torch.uint8).numpy()
    white = smp.encoders.get_preprocessing_fn("densenet121_features", "tv_in1k")(image)
    assert white[0, 0] == pytest.approx([(1 - 0.485) / 0.229, 0.544 / 0.224, 0.594 / 0.225])

    assert ask("densenet121_features")["mean"] == ask("resnet18")["mean"] == [1, 2, 3]
    repositories = [repo for repo, _, _ in hub.asked]
    assert repositories == ["smp-hub/densenet121.imagenet", "smp-hub/resnet18.imagenet"]
    with pytest.raises(ValueError, match="pretrained options"):
        ask("densenet264_features", "tv_in1k")
