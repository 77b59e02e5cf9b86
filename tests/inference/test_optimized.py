"""The fast path gives the results of the model that it is made from."""

import itertools

import pytest
import torch
from builders import FLOWS, make_input, randomize, tiny_model, tiny_subnets
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn

from spatialflow import optimize
from spatialflow.inference.optimized import fold_batch_norms
from spatialflow.modeling.deform_conv import DeformBottleneckBlock
from spatialflow.modeling.flows import AttentionFlow
from spatialflow.modeling.panoptic import HeuristicMerge
from spatialflow.modeling.wiring import TASKS


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_batch_norm(norm, bias):
    conv = Conv2d(3, 4, 3, bias=bias, norm=randomize(norm(4)), activation=torch.relu).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = conv(x)
    fold_batch_norms(conv)
    assert conv.norm is None
    torch.testing.assert_close(conv(x), expected)


def test_group_norm_is_not_folded():
    conv = Conv2d(3, 4, 3, norm=nn.GroupNorm(2, 4))
    fold_batch_norms(conv)
    assert conv.norm is not None


def test_optimized_model_can_be_optimized_again(model):
    assert_same_results(optimize(optimize(model))(inputs()), model(inputs()))


def test_model_with_attention():
    model = busy_model(flow_type=AttentionFlow)
    assert_same_results(optimize(model)(inputs()), model(inputs()))


def busy_model(**kwargs):
    """A model that finds something in noise."""
    torch.manual_seed(0)
    model = tiny_model(**kwargs, merge=HeuristicMerge(stuff_area_limit=10)).eval()
    nn.init.normal_(model.detector.cls_score.weight, std=0.5)
    nn.init.constant_(model.detector.cls_score.bias, -1.0)
    return model


@pytest.fixture(scope="module")
def model():
    return busy_model()


def inputs(n=2, **kwargs):
    return [{"image": make_input(seed=i, **kwargs)["image"]} for i in range(n)]


def assert_same_results(found, expected, atol=1e-4):
    for a, b in zip(found, expected, strict=True):
        x, y = a["instances"], b["instances"]
        assert len(x) == len(y) > 0
        assert torch.equal(x.pred_classes, y.pred_classes)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(x.scores, y.scores, atol=atol, rtol=1e-4)
        torch.testing.assert_close(a["sem_seg"], b["sem_seg"], atol=atol, rtol=1e-4)
        # Rounding, which differs between processors, may move a pixel on the edge of a mask.
        moved = int((a["panoptic_seg"][0] != b["panoptic_seg"][0]).sum())
        assert moved < 1e-3 * a["panoptic_seg"][0].numel()
        for s, t in zip(a["panoptic_seg"][1], b["panoptic_seg"][1], strict=True):
            near = {"area": pytest.approx(t["area"], abs=moved)} if "area" in t else {}
            near |= {"score": pytest.approx(t["score"])} if t["isthing"] else {}
            assert s == {**t, **near}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("branches", [{}, {"flows": ()}])
def test_results_and_the_model_stay(branches, channels_last):
    model = busy_model(**branches)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = optimize(model, channels_last=channels_last)
    assert_same_results(fast(inputs()), model(inputs()))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_without_segmentation():
    model = busy_model(things=False, stuff=False)
    (found,), (expected,) = optimize(model)(inputs(1)), model(inputs(1))
    assert found.keys() == expected.keys() == {"instances"}
    torch.testing.assert_close(found["instances"].scores, expected["instances"].scores)


def test_batch_of_eight_gives_the_single_results(model):
    fast, images = optimize(model), inputs(8)
    assert_same_results(fast(images), [fast([x])[0] for x in images])


def test_output_size(model):
    x = {**inputs(1)[0], "height": 100, "width": 70}
    fast = optimize(model)
    assert_same_results(fast([x]), model([x]))
    assert fast([x])[0]["panoptic_seg"][0].shape == (100, 70)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_panoptic_maps_alone(model, dtype):
    fast = optimize(model, dtype=dtype)
    images = [*inputs(), {**inputs(1)[0], "height": 100, "width": 70}]
    for found, expected in zip(fast.panoptic_inference(images), fast(images), strict=True):
        assert found.keys() == {"panoptic_seg"}
        same = found["panoptic_seg"][0] == expected["panoptic_seg"][0]
        assert same.float().mean() > 0.999 and expected["panoptic_seg"][1]


def test_half_precision_runs_the_convolutions(model):
    fast = optimize(model, dtype=torch.bfloat16)
    outputs = fast.dense(fast.preprocess_image(inputs()).tensor)
    assert outputs.features.cls[0].dtype == torch.bfloat16
    (found, _), (expected, _) = fast(inputs()), model(inputs())
    assert found["sem_seg"].dtype == torch.float32
    error = (found["sem_seg"] - expected["sem_seg"]).std()
    assert 0 < error < 0.05 * expected["sem_seg"].std()


HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALF
@pytest.mark.parametrize("task", ["cls", "stuff", "thing"])
@torch.no_grad()
def test_half_precision_runs_deformable_stages(task, dtype):
    model = busy_model()
    model.subnets = tiny_subnets(FLOWS, std=0.08, deform_on=(task,))
    (found, _), (expected, _) = optimize(model, dtype=dtype)(inputs()), model(inputs())
    error = (found["sem_seg"] - expected["sem_seg"]).std()
    assert 0 < error < 0.05 * expected["sem_seg"].std()


@HALF
@pytest.mark.parametrize("modulated", [True, False])
@torch.no_grad()
def test_half_precision_runs_deformable_blocks(modulated, dtype):
    plain = BottleneckBlock(8, 8, bottleneck_channels=8, norm="BN")
    block = DeformBottleneckBlock(plain, modulated=modulated).eval()
    nn.init.normal_(block.conv2_offset.weight, std=0.1)
    x = torch.randn(1, 8, 9, 12)
    expected = block(x)
    with torch.autocast("cpu", dtype):
        found = block(x)
    assert (found - expected).std() < 0.05 * expected.std()


@pytest.mark.parametrize("deform_on", [(), ("cls", "stuff", "thing")])
def test_dense_part_compiles_without_a_graph_break(deform_on):
    model = busy_model()
    model.subnets = tiny_subnets(FLOWS, std=0.08, deform_on=deform_on)
    fast = optimize(model)
    images = fast.preprocess_image(inputs()).tensor
    compiled = torch.compile(fast.dense, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        found, expected = compiled(images), fast.dense(images)
    torch.testing.assert_close(found.predictions.logits, expected.predictions.logits)
    torch.testing.assert_close(found.stuff, expected.stuff)


def test_no_more_shapes_are_compiled_than_allowed(model, monkeypatch):
    compiled = []

    def compile_later(function, **kwargs):
        def call(x):
            compiled.append(tuple(x.shape))
            return function(x)

        return call

    monkeypatch.setattr(torch, "compile", compile_later)
    fast = optimize(model, compile=True, max_shapes=2)
    for size in ((64, 96), (64, 64), (96, 96), (64, 96)):
        assert_same_results(fast(inputs(1, size=size)), model(inputs(1, size=size)))
    assert compiled == [(1, 3, 64, 96), (1, 3, 64, 64), (1, 3, 64, 96)]


def test_as_many_shapes_are_compiled_as_are_allowed(monkeypatch):
    compile_for_real, shapes = torch.compile, []

    def backend(graph, example_inputs):
        shapes.append(example_inputs)
        return graph.forward

    def compile_eagerly(function, *, mode, **kwargs):
        return compile_for_real(function, backend=backend, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    torch.compiler.reset()
    model = busy_model(things=False)
    model.subnets = tiny_subnets((), stages=dict.fromkeys(TASKS, 0), tasks=("cls", "reg", "stuff"))
    sizes = list(itertools.product((32, 64, 96), (32, 64, 96, 128)))
    fast = optimize(model, compile=True, max_shapes=len(sizes))
    for size in sizes:
        (found,), (expected,) = (m(inputs(1, size=size)) for m in (fast, model))
        torch.testing.assert_close(found["sem_seg"], expected["sem_seg"], atol=1e-4, rtol=1e-4)
    assert len(shapes) == len(fast.compiled_shapes) == len(sizes) == 12


def test_training_is_refused(model):
    fast = optimize(model).train()
    with pytest.raises(RuntimeError, match="for inference"):
        fast([make_input()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_graphs():
    on_cuda = busy_model().cuda()
    fast = optimize(on_cuda, compile=True)
    for _ in range(3):
        results = [fast([x])[0] for x in inputs()]
        assert_same_results(results, on_cuda(inputs()), atol=1e-2)
