"""Contract of every net builder, and exact answers where a formula says what comes out."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from pyrovae import nn as pnn
from pyrovae.nn import MLP, Constant, ConvNet, GatedMLP, GRUEncoder, Join, ResNet, SplitLinear, batched, dims

torch.set_num_threads(1)

IMAGES = [(1, 1, 1), (2, 5, 7), (1, 28, 28), (3, 8, 8), (2, 33, 20)]
SAME = [((2, 5, 7), (4, 5, 7)), ((1, 1, 1), (2, 1, 1))]
RESIZED = [
    ((1, 28, 28), (8, 7, 7)),
    ((8, 7, 7), (1, 28, 28)),
    ((2, 9, 20), (2, 2, 1)),
    ((2, 1, 1), (1, 33, 20)),
    ((1, 7, 28), (3, 28, 7)),
    ((1, 7, 7), (1, 5, 5)),
    ((1, 5, 6), (2, 7, 33)),
]
SHAPES = [*((i, 6) for i in IMAGES), *((6, i) for i in IMAGES), *SAME, *RESIZED]
DENSE = {
    "linear": nn.Linear,
    "mlp": partial(MLP, hidden=(9,)),
    "mlp-linear": partial(MLP, hidden=()),
    "mlp-deep": partial(MLP, hidden=(9, 8, 7), activation=nn.Tanh),
    "mlp-normed": partial(MLP, hidden=(9, 8), norm=nn.LayerNorm),
    "gated": partial(GatedMLP, hidden=(9, 8)),
    "gru": partial(GRUEncoder, length=3, vocabulary=4, hidden=9, embedding=3),
}
IMAGE = {
    "conv": partial(ConvNet, channels=(3, 5)),
    "conv-tanh": partial(ConvNet, channels=(4,), activation=nn.Tanh),
    "conv-deep": partial(ConvNet, channels=(2, 3, 4, 5), activation=nn.SiLU),
    "res": partial(ResNet, channels=(3, 5)),
    "res-2": partial(ResNet, channels=(3,), blocks=2),
}
TABLE = [
    *(pytest.param(b, 5, 4, id=f"{n}-5-4") for n, b in DENSE.items()),
    *(pytest.param(DENSE[n], i, o, id=f"{n}-{i}-{o}") for n in ("mlp", "gated") for i, o in (*SHAPES[:7], ((4, 3), 2))),
    *(pytest.param(b, i, o, id=f"{n}-{i}-{o}") for n, b in IMAGE.items() for i, o in SHAPES),
]
contract = pytest.mark.parametrize(("build", "in_shape", "out_shape"), TABLE)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def image_sizes():
    return st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 19))


def widths():
    return st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@contract
def test_output_shape_with_any_number_of_rows(build, in_shape, out_shape):
    net = build(in_shape, out_shape)
    for rows in (0, 1, 3):
        assert net(torch.randn(rows, *dims(in_shape))).shape == (rows, *dims(out_shape))


@contract
def test_gradient_reaches_every_parameter(build, in_shape, out_shape):
    # Many rows, because a rectifier may be silent for every one of a few.
    net = build(in_shape, out_shape).double()
    net(torch.randn(32, *dims(in_shape), dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@contract
def test_state_dict_round_trip(build, in_shape, out_shape):
    net, other = build(in_shape, out_shape), build(in_shape, out_shape)
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, *dims(in_shape))
    assert torch.equal(net(x), other(x))
    assert torch.equal(net(x), copy.deepcopy(net)(x))


@contract
def test_leading_dimensions_agree(build, in_shape, out_shape):
    net, event = build(in_shape, out_shape).double(), dims(in_shape)
    x = torch.randn(2, 3, *event, dtype=torch.float64)
    y = batched(net, x, len(event))
    assert y.shape == (2, 3, *dims(out_shape))
    torch.testing.assert_close(batched(net, x[1], len(event)), y[1])
    torch.testing.assert_close(batched(net, x[1, 2], len(event)), y[1, 2])
    assert batched(net, x[:, :0], len(event)).shape == (2, 0, *dims(out_shape))


@settings(max_examples=25, deadline=None)
@given(image_sizes(), image_sizes(), widths(), st.sampled_from([ConvNet, partial(ResNet, blocks=1)]))
def test_images_of_any_size(a, b, channels, build):
    for i, o in ((a, 3), (3, a), (a, b), (a, a)):
        assert build(i, o, channels=channels)(torch.zeros(2, *dims(i))).shape == (2, *dims(o))


@settings(max_examples=25, deadline=None)
@given(image_sizes(), image_sizes(), st.lists(st.integers(1, 5), max_size=3).map(tuple))
def test_dense_of_any_width(a, b, hidden):
    for build in (MLP, GatedMLP):
        assert build(a, b, hidden=hidden)(torch.zeros(2, *a)).shape == (2, *b)


def test_every_exported_builder_is_in_the_table():
    others = {"Constant", "Join", "NetBuilder", "Shape", "SplitLinear", "Splittable", "batched", "dims"}
    others |= {"SequenceDecoder", "GRUDecoder"}  # built with the number of symbols, and called step by step: test_text
    tabled = {getattr(p.values[0], "func", p.values[0]) for p in TABLE}
    assert {getattr(pnn, name) for name in set(pnn.__all__) - others} <= tabled


@pytest.mark.parametrize(
    ("net", "arguments"),
    [
        (MLP(3, (1, 2, 2), hidden=(4,)), {"hidden": (4,), "activation": nn.ReLU, "norm": None}),
        (MLP(3, (1, 2, 2), hidden=(4,), norm=nn.LayerNorm), {"hidden": (4,), "norm": nn.LayerNorm}),
        (GatedMLP(3, (1, 2, 2), hidden=(4,)), {"hidden": (4,)}),
        (ConvNet(3, (1, 2, 2), activation=nn.SiLU), {"channels": (32, 64), "activation": nn.SiLU}),
        (ResNet(3, (1, 2, 2), channels=(4,), blocks=2), {"channels": (4,), "blocks": 2}),
    ],
)
def test_constructor_arguments_are_kept(net, arguments):
    arguments = {"in_shape": 3, "out_shape": (1, 2, 2), **arguments}
    assert {name: getattr(net, name) for name in arguments} == arguments
    assert type(net)(**arguments)(torch.zeros(1, 3)).shape == (1, 1, 2, 2)


def test_mlp_is_its_formula():
    net, x = MLP((2, 3), (2, 2), hidden=(5, 4)).double(), torch.randn(7, 2, 3, dtype=torch.float64)
    w1, b1, w2, b2, w3, b3 = net.parameters()
    h = torch.relu(torch.relu(x.reshape(7, 6) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(net(x), (h @ w3.T + b3).reshape(7, 2, 2))


def test_normed_mlp_is_its_formula():
    net, x = MLP(6, 2, hidden=(5,), norm=nn.BatchNorm1d).double(), torch.randn(7, 6, dtype=torch.float64)
    w, b, w_out, b_out = (p for name, p in net.named_parameters() if not name.startswith("layers.1."))
    h = x @ w.T + b
    h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(net(x), torch.relu(h) @ w_out.T + b_out)
    torch.testing.assert_close(net(x), net(x[:, :2], x[:, 2:]))


def test_gated_mlp_is_its_formula():
    net, x = GatedMLP(6, 2, hidden=(5,)).double(), torch.randn(7, 6, dtype=torch.float64)
    wv, bc, w_out, b_out = net.parameters()
    (w, v), (b, c) = wv.chunk(2), bc.chunk(2)
    h = (x @ w.T + b) * torch.sigmoid(x @ v.T + c)
    torch.testing.assert_close(net(x), h @ w_out.T + b_out)


def test_residual_net_is_its_formula():
    net, x = ResNet((1, 4, 4), 2, channels=(3,)).double(), torch.randn(5, 1, 4, 4, dtype=torch.float64)
    p = [*net.parameters()]
    h = F.conv2d(x, p[0], p[1], stride=2, padding=1)
    h = h + F.conv2d(F.silu(F.conv2d(F.silu(h), p[2], p[3], padding=1)), p[4], p[5], padding=1)
    torch.testing.assert_close(net(x), F.silu(h).flatten(1) @ p[6].T + p[7])


@pytest.mark.parametrize("build", [ConvNet, ResNet])
def test_no_activation_follows_the_output(build):
    y = build(4, (1, 9, 9), channels=(4,))(10 * torch.randn(64, 4))
    assert y.min() < -0.5


@pytest.mark.parametrize("build", [ConvNet, ResNet])
@pytest.mark.parametrize("shapes", [((1, 9, 13), 2), ((1, 9, 13), (1, 4, 6)), ((1, 9, 13), (1, 9, 13))])
def test_every_input_pixel_counts(build, shapes):
    net = partial(build, activation=nn.Tanh) if build is ConvNet else build
    x = torch.randn(2, *shapes[0], dtype=torch.float64, requires_grad=True)
    net(*shapes, channels=(4, 4)).double()(x).sum().backward()
    assert x.grad.ne(0).all()


def test_batched_calls_a_single_leading_dimension_as_it_is():
    x = torch.randn(3, 4)
    assert batched(lambda y: y, x, 1) is x


def test_batched_folds_particles_for_batch_normalisation():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 9, 4), nn.BatchNorm1d(4))
    x = torch.randn(6, 5, 2, 5, 5)
    y = batched(net, x, 3)
    assert y.shape == (6, 5, 4)
    torch.testing.assert_close(y.reshape(30, 4).mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_batched_takes_expanded_input_and_refuses_too_few_dimensions():
    x = torch.randn(3, 4).expand(2, 3, 4)
    torch.testing.assert_close(batched(nn.Flatten(), x, 1), x)
    with pytest.raises(ValueError, match=r"at least 3 dimensions, received shape \(4, 4\)"):
        batched(nn.Flatten(), torch.zeros(4, 4), 3)


def test_batched_is_captured_whole():
    net, x = ConvNet((1, 4, 4), 2, channels=(2,)), torch.randn(2, 3, 1, 4, 4)
    step = torch.compile(lambda x: batched(net, x, 3), backend="eager", fullgraph=True)
    assert torch.equal(step(x), batched(net, x, 3))


def test_join_broadcasts_vectors():
    join = Join((2, 3))
    a, b = torch.randn(6, 5, 2), torch.randn(5, 3)
    y = join(a, b)
    assert join.shape == 5
    assert torch.equal(y, torch.cat([a, b.expand(6, 5, 3)], -1))
    assert join(a, b[0]).shape == (6, 5, 5)
    assert join(a[0, 0], b[0]).shape == (5,)


@pytest.mark.parametrize("image_first", [True, False])
def test_join_makes_planes_of_vectors_beside_an_image(image_first):
    shapes, contexts = [(2, 5, 7), 3], [torch.randn(4, 2, 5, 7), torch.randn(6, 1, 3)]
    order = slice(None, None, 1 if image_first else -1)
    join = Join(shapes[order])
    y = join(*contexts[order])
    assert join.shape == (5, 5, 7)
    assert y.shape == (6, 4, 5, 5, 7)
    image, planes = (y[..., :2, :, :], y[..., 2:, :, :]) if image_first else (y[..., 3:, :, :], y[..., :3, :, :])
    assert torch.equal(image, contexts[0].expand(6, 4, 2, 5, 7))
    assert torch.equal(planes, contexts[1][..., None, None].expand(6, 4, 3, 5, 7))


def test_join_of_images_and_of_tables():
    assert Join([(1, 4, 4), (2, 4, 4)]).shape == (3, 4, 4)
    a, b = torch.randn(6, 1, 3, 4), torch.randn(5, 2)
    join = Join([(3, 4), 2])
    assert join.shape == 14
    assert torch.equal(join(a, b)[..., :12], a.flatten(-2).expand(6, 5, 12))


@pytest.mark.parametrize("shape", [4, (2, 3), (1, 4, 4)])
def test_join_passes_one_context_on(shape):
    join, x = Join([shape]), torch.zeros(2, *dims(shape))
    assert join.shape == shape
    assert join(x) is x


@pytest.mark.parametrize(
    ("contexts", "message"),
    [
        ([torch.zeros(5, 2)], "expected 2 contexts, received 1"),
        ([torch.zeros(5, 2), torch.zeros(5, 2)], r"context 1: expected shape \(\*batch, 3\), received \(5, 2\)"),
        ([torch.zeros(()), torch.zeros(3)], r"context 0: expected shape \(\*batch, 2\), received \(\)"),
        ([torch.zeros(5, 2), None], r"context 1: .* received None"),
    ],
)
def test_join_refuses_wrong_contexts(contexts, message):
    with pytest.raises(ValueError, match=message):
        Join([2, 3])(*contexts)


@st.composite
def part_shapes(draw):
    """One to three shapes with leading dimensions that broadcast, and perhaps the same ones."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    batch = draw(st.lists(st.integers(0, 4), max_size=3))

    def lead():
        kept = batch[draw(st.integers(0, len(batch))) :]
        return [draw(st.sampled_from([n, 1])) for n in kept]

    return [(*(batch if draw(st.booleans()) else lead()), n) for n in sizes]


def concatenated(parts):
    batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*batch, p.shape[-1]) for p in parts], -1)


def assert_equal_with_gradients(ours, theirs, wrt):
    """Two outputs, and their gradients through a nonlinear scalar."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(ours)
    grads = [torch.autograd.grad((y.sin() * weights).sum(), wrt) for y in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def leaf(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@settings(deadline=None)
@given(part_shapes(), st.integers(1, 4))
def test_split_linear_is_linear_on_the_concatenation(shapes, size):
    split = SplitLinear([s[-1] for s in shapes], size).double()
    whole = nn.Linear(sum(s[-1] for s in shapes), size).double()
    whole.load_state_dict(split.state_dict())
    split.load_state_dict(whole.state_dict())
    whole.weight, whole.bias = split.weight, split.bias  # shared, so that gradients are of the same parameters
    parts = [leaf(*s) for s in shapes]
    assert_equal_with_gradients(split(*parts), whole(concatenated(parts)), [*parts, *split.parameters()])


@settings(deadline=None)
@given(part_shapes(), st.sampled_from(["mlp", "mlp-linear", "mlp-deep", "gated"]), st.sampled_from([4, (2, 3)]))
def test_a_dense_network_takes_its_input_in_parts(shapes, name, out):
    net = DENSE[name](sum(s[-1] for s in shapes), out).double()
    join, parts = Join([s[-1] for s in shapes]), [leaf(*s) for s in shapes]
    wrt = [*parts, *net.parameters()]
    assert_equal_with_gradients(join.feed(net, *parts), batched(net, concatenated(parts), 1), wrt)
    if len(parts) > 1:  # one is a whole input
        assert_equal_with_gradients(net(*parts), batched(net, concatenated(parts), 1), wrt)


def test_split_linear_starts_as_linear():
    torch.manual_seed(3)
    split, after = SplitLinear([784, 10], 50), torch.rand(1)
    torch.manual_seed(3)
    whole = nn.Linear(794, 50)
    assert torch.equal(after, torch.rand(1))
    assert [*split.state_dict()] == [*whole.state_dict()]
    assert all(map(torch.equal, split.parameters(), whole.parameters()))
    assert repr(split) == "SplitLinear(in_features=[784, 10], out_features=50)"


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.count += out.numel() * args[-1].shape[0]
        return out


@pytest.mark.parametrize("label", [(10, 1, 4), (10, 6, 4)])
def test_an_image_is_multiplied_once_for_all_labels(label):
    x, y = torch.randn(6, 30), torch.randn(*label)
    net, join = MLP(34, 2, hidden=(8,)), Join([30, 4])
    with Products() as split:
        join.feed(net, x, y)
    with Products() as whole:
        batched(net, join(x, y), 1)
    layer, label_rows = 60 * 8 * 2, y.shape[:-1].numel()
    assert whole.count == 60 * 34 * 8 + layer
    assert split.count == 6 * 30 * 8 + label_rows * 4 * 8 + layer


@pytest.mark.parametrize("build", [SplitLinear, lambda sizes, out: MLP(sum(sizes), out, hidden=())])
def test_parts_that_nothing_repeats_are_one_product(build):
    net, parts = build([3, 4], 2), [torch.randn(5, 6, 3), torch.randn(5, 6, 4)]
    with Products() as products:
        net(*parts)
    assert products.count == 30 * 7 * 2


def test_a_network_gets_joint_contexts_unless_one_is_repeated():
    seen = []
    net, join = MLP(5, 2), Join([2, 3])
    net.register_forward_pre_hook(lambda module, args: seen.append([tuple(a.shape) for a in args]))
    join.feed(net, torch.zeros(4, 2), torch.zeros(4, 3))
    join.feed(net, torch.zeros(6, 4, 2), torch.zeros(6, 4, 3))
    join.feed(net, torch.zeros(4, 2), torch.zeros(6, 1, 3))
    assert seen == [[(4, 5)], [(24, 5)], [(4, 2), (6, 1, 3)]]


@pytest.mark.parametrize("build", [nn.Linear, lambda i, o: nn.Sequential(MLP(i, 3), nn.Tanh(), nn.Linear(3, o))])
def test_networks_that_take_no_parts_get_joint_contexts(build):
    net, join, x, y = build(5, 2), Join([2, 3]), torch.randn(4, 2), torch.randn(6, 1, 3)
    assert torch.equal(join.feed(net, x, y), batched(net, join(x, y), 1))


@pytest.mark.parametrize("build", [partial(MLP, hidden=(4,)), partial(ConvNet, channels=(2,))])
def test_contexts_with_an_image_are_joined(build):
    join, x, y = Join([(1, 5, 6), 3]), torch.randn(4, 1, 5, 6), torch.randn(7, 1, 3)
    net = build(join.shape, 2)
    assert torch.equal(join.feed(net, x, y), batched(net, join(x, y), 3))


@pytest.mark.parametrize("norm", [False, True])
def test_a_first_layer_that_was_replaced_is_called(norm):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    net, join, x, y = MLP(5, 2), Join([2, 3]), torch.randn(4, 2), torch.randn(6, 1, 3)
    net.layers[0] = nn.utils.parametrizations.weight_norm(net.layers[0]) if norm else Twice(5, 400)
    torch.testing.assert_close(join.feed(net, x, y), batched(net, join(x, y), 1))


def test_tables_are_flattened_before_they_are_split():
    join, x, y = Join([(3, 2), 3]), leaf(4, 3, 2), leaf(7, 1, 3)
    net = MLP(9, 2).double()
    assert_equal_with_gradients(join.feed(net, x, y), batched(net, join(x, y), 1), [x, y])


def test_parts_may_be_integer_as_a_concatenation_may():
    x, y = torch.randn(4, 3), F.one_hot(torch.arange(2))[:, None]
    split = SplitLinear([3, 2], 4)
    assert torch.equal(split(x, y), split(x, y.float()))
    assert torch.equal(split(x, y.bool()), split(x, y.float()))


def test_parts_are_captured_whole():
    net, x, y = GatedMLP(5, 2, hidden=(4,)), torch.randn(3, 2), torch.randn(6, 1, 3)
    step = torch.compile(lambda x, y: Join([2, 3]).feed(net, x, y), backend="eager", fullgraph=True)
    assert torch.equal(step(x, y), net(x, y))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([(5, 2)], "SplitLinear: expected 2 parts, received 1"),
        ([(5, 2), (5, 3), (5, 1)], "SplitLinear: expected 2 parts, received 3"),
        ([(5, 2), (5, 2)], r"SplitLinear: part 1: expected shape \(\*batch, 3\), received \(5, 2\)"),
        ([(), (5, 3)], r"SplitLinear: part 0: expected shape \(\*batch, 2\), received \(\)"),
        ([(5, 2), (4, 3)], r"leading dimensions that broadcast, received shapes \(5, 2\), \(4, 3\)"),
    ],
)
def test_split_linear_refuses_wrong_parts(parts, message):
    with pytest.raises(ValueError, match=message):
        SplitLinear([2, 3], 4)(*(torch.zeros(s) for s in parts))


@pytest.mark.parametrize(
    ("in_shape", "parts"), [(5, [(4, 2), (4, 2)]), (5, [(4, 5), ()]), ((1, 5), [(4, 2), (4, 3)]), (5, [(4, 5), (4, 5)])]
)
def test_dense_networks_refuse_wrong_parts(in_shape, parts):
    with pytest.raises(ValueError, match=r"GatedMLP: expected parts of one input of shape .* received shapes \(4, "):
        GatedMLP(in_shape, 2)(*(torch.zeros(s) for s in parts))


def test_join_refuses_leading_dimensions_that_do_not_broadcast():
    for net in (nn.Linear(5, 2), MLP(5, 2)):
        with pytest.raises(ValueError, match=r"broadcast, received shapes \(5, 2\), \(4, 3\)"):
            Join([2, 3]).feed(net, torch.zeros(5, 2), torch.zeros(4, 3))


def test_constant_is_a_parameter():
    net = Constant((2, 3))
    assert net.shape == (2, 3)
    assert isinstance(net(), nn.Parameter)
    assert torch.equal(net(), torch.zeros(2, 3))
    assert [*net.state_dict()] == ["value"]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLP(0, 3), "in_shape: expected a positive int"),
        (lambda: MLP(3, (2, -1)), r"out_shape: .* received \(2, -1\)"),
        (lambda: MLP(3, ()), "out_shape"),
        (lambda: GatedMLP(3.0, 2), "in_shape"),
        (lambda: MLP(True, 3), "in_shape"),
        (lambda: MLP("16", 3), "in_shape"),
        (lambda: MLP(3, 2, hidden=400), "hidden: expected a sequence"),
        (lambda: GatedMLP(3, 2, hidden=(0,)), "hidden"),
        (lambda: MLP(3, 2, activation=nn.ReLU()), "activation: expected a class"),
        (lambda: MLP(3, 2, norm=nn.LayerNorm(400)), "norm: expected a class"),
        (lambda: ConvNet((1, 4, 4), 2, activation=nn.ReLU()), "activation"),
        (lambda: ConvNet(3, 2), "use MLP"),
        (lambda: ResNet(3, (2,)), "use MLP"),
        (lambda: ConvNet((28, 28), 2), r"in_shape: expected an image \(C, H, W\)"),
        (lambda: ConvNet(2, (28, 28)), "out_shape"),
        (lambda: ConvNet((1, 4, 4), 2, channels=()), "channels: expected at least one"),
        (lambda: ResNet((1, 4, 4), 2, channels=(8, 0)), "channels"),
        (lambda: ResNet((1, 4, 4), 2, blocks=0), "blocks"),
        (lambda: SplitLinear([], 2), "in_features: expected the size of at least one part"),
        (lambda: SplitLinear(5, 2), "in_features: expected a sequence"),
        (lambda: SplitLinear([5, 0], 2), "in_features: expected a sequence of positive ints"),
        (lambda: SplitLinear([5, 2], 0), "out_features: expected a positive int"),
        (lambda: Constant(-1), "shape"),
        (lambda: Join([]), "Join"),
        (lambda: Join(3), "Join"),
        (lambda: Join([3, 0]), "Join: shape 1"),
        (lambda: Join([(1, 4, 4), (1, 5, 4)]), "one height and width"),
        (lambda: Join([(1, 4, 4), (4, 4)]), "one height and width"),
    ],
)
def test_constructors_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
