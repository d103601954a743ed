"""The attention primitive: what it computes, and that nobody's hand stays in it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guidance_edu.attention import (
    SelfAttention,
    as_many,
    attend,
    attention_layers,
    attention_weights,
    chosen_layers,
    forked,
    recorded,
    replaced,
)


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        names = ["enc.8.0", "mid.4", "dec.8.0"]
        self.layers = nn.ModuleList(SelfAttention(12, 3, name) for name in names)
        for layer in self.layers:
            nn.init.normal_(layer.out.weight)

    def forward(self, x, grid=None):
        for layer in self.layers:
            mixed = layer(x, grid)
            x = as_many(x, mixed) + mixed
        return x


def identity(queries, keys, values, grid):
    return values


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Stack().double()


@pytest.fixture
def tokens():
    return torch.randn(5, 6, 12, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_attention_is_torchs_scaled_dot_product(heads):
    rng = torch.Generator().manual_seed(heads)
    q, k, v = torch.randn(3, 2, heads, 7, 4, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_a_layer_equals_torchs_multihead_attention(tokens):
    layer = SelfAttention(12, 3).double()
    torch.manual_seed(3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    theirs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(layer.qkv.weight)
        theirs.in_proj_bias.copy_(layer.qkv.bias)
        theirs.out_proj.weight.copy_(layer.out.weight)
        theirs.out_proj.bias.copy_(layer.out.bias)
    torch.testing.assert_close(layer(tokens), theirs(tokens, tokens, tokens)[0])


def test_rows_of_the_weights_sum_to_one():
    q, k = torch.randn(2, 3, 2, 9, 4, generator=torch.Generator().manual_seed(0)) * 20
    weights = attention_weights(q, k)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 9))


def test_a_new_layer_adds_nothing():
    assert SelfAttention(8, 2)(torch.randn(2, 3, 8)).count_nonzero() == 0


def test_one_token_is_its_own_value(tokens):
    one = tokens[:, :1].unsqueeze(1)
    torch.testing.assert_close(attend(one, 3 * one, one), one)


def test_replacing_attention_by_itself_changes_nothing(stack, tokens):
    plain = stack(tokens)
    with replaced(stack, ["mid.4", "dec.8.0"], attend, slice(2, None)):
        assert torch.equal(stack(tokens), plain)


def test_only_the_chosen_layer_is_replaced(stack, tokens):
    seen = []

    def watch(queries, keys, values, grid):
        seen.append((queries.shape, grid))
        return identity(queries, keys, values, grid)

    with replaced(stack, ["mid.4"], watch):
        changed = stack(tokens, (2, 3))
    assert seen == [((5, 3, 6, 4), (2, 3))]
    x = tokens
    for layer in stack.layers:
        if layer.name == "mid.4":
            values = F.linear(x, layer.qkv.weight[24:], layer.qkv.bias[24:])
            x = x + layer.out(values)
        else:
            x = x + layer(x)
    torch.testing.assert_close(changed, x)


@pytest.mark.parametrize("rows", [slice(3, None), slice(0, 2), slice(None), slice(5, None)])
def test_only_the_chosen_part_of_the_batch_is_replaced(stack, tokens, rows):
    plain = stack(tokens)
    with replaced(stack, [0, 2], identity):
        whole = stack(tokens)
    with replaced(stack, [0, 2], identity, rows):
        part = stack(tokens)
    expected = plain.clone()
    expected[rows] = whole[rows]
    torch.testing.assert_close(part, expected)


def test_where_two_hands_reach_for_one_sample_the_inner_one_holds(stack, tokens):
    def zero(queries, keys, values, grid):
        return torch.zeros_like(values)

    with replaced(stack, [1], zero):
        outer = stack(tokens)
        with replaced(stack, [1], identity, slice(3, None)):
            both = stack(tokens)
    with replaced(stack, [1], identity):
        inner = stack(tokens)
    torch.testing.assert_close(both, torch.cat([outer[:3], inner[3:]]))


def test_everything_is_undone_at_the_end_and_on_an_exception(stack, tokens):
    plain = stack(tokens)
    with pytest.raises(ZeroDivisionError):
        with replaced(stack, ["mid.4"], identity), recorded(stack, ["enc.8.0"]):
            assert not torch.equal(stack(tokens), plain)
            raise ZeroDivisionError
    assert torch.equal(stack(tokens), plain)
    assert all(not x.replacements and not x.readers for x in stack.layers)


def test_an_error_inside_a_replacement_leaves_the_layer_whole(stack, tokens):
    def broken(queries, keys, values, grid):
        return values[..., :1]

    plain = stack(tokens)
    with pytest.raises(ValueError, match=r"layer 'mid.4' returned \[5, 3, 6, 1\], expected"):
        with replaced(stack, ["mid.4"], broken):
            stack(tokens)
    assert torch.equal(stack(tokens), plain)


def test_the_same_function_can_be_set_twice_and_each_block_ends_on_its_own(stack, tokens):
    with replaced(stack, ["mid.4"], identity):
        once = stack(tokens)
        with replaced(stack, ["mid.4"], identity):
            pass
        assert torch.equal(stack(tokens), once)


def test_reading_returns_each_layers_map_and_changes_nothing(stack, tokens):
    plain = stack(tokens)
    with recorded(stack, ["enc.8.0", "dec.8.0"]) as maps:
        assert torch.equal(stack(tokens), plain)
        stack(tokens, (2, 3))
    assert list(maps) == ["enc.8.0", "dec.8.0"] and [len(m) for m in maps.values()] == [2, 2]
    layer = stack.layers[0]
    q, k, _ = layer.qkv(tokens).reshape(5, 6, 3, 3, 4).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(maps["enc.8.0"][0].weights, attention_weights(q, k).detach())
    assert not maps["enc.8.0"][0].weights.requires_grad
    assert [m.grid for m in maps["dec.8.0"]] == [None, (2, 3)]


def test_two_readers_of_one_layer_each_get_their_own(stack, tokens):
    with recorded(stack, [0]) as outer:
        stack(tokens)
        with recorded(stack, [0]) as inner:
            stack(tokens)
        stack(tokens)
    assert len(outer["enc.8.0"]) == 3 and len(inner["enc.8.0"]) == 1


def test_layers_are_named_in_order(stack):
    assert list(attention_layers(stack)) == ["enc.8.0", "mid.4", "dec.8.0"]
    assert [x.name for x in chosen_layers(stack, [-1, "enc.8.0"])] == ["dec.8.0", "enc.8.0"]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["midd"], r"layer 'midd' not found; this network has: enc.8.0, mid.4, dec.8.0"),
        (["mid.*"], r"layer 'mid\.\*' not found"),
        ([3], "layer 3 not found"),
        ([-4], "layer -4 not found"),
        ("mid.4", r"expected a list of layers, got the string 'mid.4'"),
        ([], "expected at least one layer"),
        (["mid.4", 1], "each once"),
    ],
)
def test_a_wrong_choice_of_layers_says_what_there_is(stack, layers, message):
    with pytest.raises(ValueError, match=message):
        with replaced(stack, layers, identity):
            pass
    with pytest.raises(ValueError, match=message):
        with recorded(stack, layers):
            pass


def test_a_network_without_attention_or_with_twin_names_is_refused():
    with pytest.raises(ValueError, match="Linear has no attention layer"):
        attention_layers(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="names of their own"):
        attention_layers(nn.ModuleList([SelfAttention(4, 1, "a"), SelfAttention(4, 1, "a")]))


def test_wrong_heads_and_grids_are_refused(tokens):
    with pytest.raises(ValueError, match="heads that divide 10 channels, got 3"):
        SelfAttention(10, 3)
    with pytest.raises(ValueError, match="expected 2 x 2 tokens, got 6"):
        SelfAttention(12, 3).double()(tokens, (2, 2))


def test_replacement_and_gradient_go_together(stack, tokens):
    with replaced(stack, ["mid.4"], identity, slice(2, None)):
        stack(tokens).sum().backward()
    grads = [p.grad for p in stack.layers[1].parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


@pytest.mark.parametrize("layers", [["enc.8.0"], ["mid.4", "dec.8.0"], [0, 2], [-1]])
def test_a_forked_pass_gives_both_answers(stack, tokens, layers):
    plain = stack(tokens)
    with replaced(stack, layers, identity):
        other = stack(tokens)
    with forked(stack, layers, identity, len(tokens)):
        both = stack(tokens)
    torch.testing.assert_close(both, torch.cat([plain, other]))
    assert torch.equal(stack(tokens), plain) and all(x.fork is None for x in stack.layers)


def test_what_lies_before_the_fork_is_computed_once(stack, tokens):
    rows = []
    for layer in stack.layers:
        layer.qkv.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with forked(stack, ["mid.4"], identity, 5):
        stack(tokens)
    assert rows == [5, 5, 10]


def test_a_fork_in_a_taken_layer_or_of_another_batch_is_refused_and_undone(stack, tokens):
    with replaced(stack, ["mid.4"], identity):
        with pytest.raises(ValueError, match="'mid.4' is replaced already"):
            with forked(stack, ["enc.8.0", "mid.4"], identity, 5):
                pass
    assert all(x.fork is None for x in stack.layers)
    with pytest.raises(ValueError, match="expected 4 samples to fork, got 5"):
        with forked(stack, ["mid.4"], identity, 4):
            stack(tokens)
    assert all(x.fork is None for x in stack.layers)


def test_a_batch_older_than_a_fork_is_repeated_in_order():
    old = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(as_many(old, torch.zeros(4, 1)), torch.cat([old, old]))
    assert as_many(old, torch.zeros(2)) is old
