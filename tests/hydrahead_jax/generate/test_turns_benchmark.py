"""Checks the benchmark of many turns by small cases that are computed by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.kv_turns import layouts
from benchmarks.turns.cache_size import CacheSize
from benchmarks.turns.costs import Costs
from benchmarks.turns.reader import Reader
from benchmarks.turns.replayed import Replay
from benchmarks.turns.residency import Admission, Residency
from benchmarks.turns.script import Question, Script, ScriptSettings, write_script
from benchmarks.turns.served import Served, summary
from benchmarks.turns.simulated import Server
from benchmarks.turns.tables import replayed_table, simulated_table
from benchmarks.turns.workload import Turn, Workload
from hydrahead_jax.cache import cache_bytes
from hydrahead_jax.config import FullAttention, Hydra, qwen3
from hydrahead_jax.evals.niah import NeedleSymbols
from hydrahead_jax.models import init_params
from pallas_kernels.hardware.chips import CHIPS
from tests.toy_config import toy_config
from train.stage.flops import forward_flops

MIXERS = (Hydra(fa_heads=(1,)), FullAttention())


def turn(residency: Residency, sequence: int, size: int) -> Admission | None:
    found = residency.begin(sequence, size)
    residency.end(sequence)
    return found


def test_the_least_recently_used_caches_are_dropped():
    residency = Residency(10)
    assert [turn(residency, x, 4) for x in (0, 1)] == [Admission(False, ())] * 2
    assert turn(residency, 0, 5) == Admission(True, ()) and residency.used == 9
    assert turn(residency, 2, 4) == Admission(False, (1,)) and residency.resident == (0, 2)
    assert turn(residency, 0, 7) == Admission(True, (2,)) and residency.used == 7


def test_running_sequences_stay_and_one_that_is_too_large_runs_alone():
    residency = Residency(10)
    residency.begin(0, 4)
    residency.begin(1, 5)
    assert residency.begin(2, 2) is None and residency.resident == (0, 1)
    residency.end(0)
    assert residency.begin(2, 2) == Admission(False, (0,))
    assert residency.begin(3, 11) is None
    residency.end(1)
    residency.end(2)
    assert turn(residency, 3, 11) == Admission(False, (1, 2)) and residency.resident == ()


def test_four_bits_hold_more_sequences_by_the_ratio_of_bytes():
    config = toy_config(head_dim=32)
    names = ("bf16", "ultraquant")
    sizes = {name: CacheSize.of(config, name).bytes(64) for name in names}
    held = {}
    for name, size in sizes.items():
        residency = Residency(17 * sizes["bf16"])
        for sequence in range(100):
            turn(residency, sequence, size)
        held[name] = len(residency.resident)
    assert held == {"bf16": 17, "ultraquant": 64}  # 128 bytes a vector pair against 34


class OneSecond:
    """Takes a second for each token that is read, and for each decode step."""

    size = CacheSize(token=1, state=0)
    prefill_s = staticmethod(lambda cached, new: new)
    decode_s = staticmethod(lambda sequences, tokens: 1)


@pytest.mark.parametrize(
    ("budget", "ttft", "read", "hit_rate", "seconds"),
    [
        (math.inf, [4, 8, 3, 6], [4, 4, 3, 3], 1.0, 21),
        (12, [4, 8, 3, 13], [4, 4, 3, 9], 0.5, 28),
        (0, [4, 9, 9, 14], [4, 4, 9, 9], 0.0, 30),
    ],
)
def test_the_simulated_server_against_times_by_hand(budget, ttft, read, hit_rate, seconds):
    """Two sessions arrive at 0 with 4 tokens, and with 3 more 5 seconds after a reply of 2."""
    server = Server(OneSecond, budget, 10, [[Turn(4, 2, 0.0), Turn(3, 2, 5.0)]] * 2)
    server.run()
    assert [one.ttft_s for one in server.turns] == ttft
    assert [one.read for one in server.turns] == read
    found = summary(server.turns, server.now)
    assert (found["hit_rate"], found["seconds"]) == (hit_rate, seconds)
    assert found["reply_tokens_a_second"] == 8 / seconds


def test_tables_say_what_was_served():
    turns = [Served(r, r > 1, 2 * (r == 1), 3, 10, 1.0 + r, 4) for r in range(8)]
    row = summary(turns, 16.0) | {"layout": "full", "bits": 4, "bytes_a_token": 2048, "fit": 1}
    line = simulated_table([row]).splitlines()[-1]
    assert line.startswith("| full | 4 | 2.0 | 1 | 86% | 3.0 | 2 | 0.00 | 2 | 4.50, 7.65 |")
    assert line.endswith("| 2.00, 2.00 | 5.00, 5.00 | 8.00, 8.00 |")
    row |= {"budget": None, "right_first": 0.5, "right_again": 1.0}
    assert replayed_table([row]).splitlines()[-1].endswith("| 50.0% | 100.0% |")


def test_a_workload_is_the_same_for_a_seed():
    workload = Workload(sessions=3, rounds=2, context=100, tokens=10, pause_s=1.0)
    sessions = workload.turns()
    assert sessions == workload.turns() != dataclasses.replace(workload, seed=1).turns()
    assert all(50 <= first.tokens <= 150 and 5 <= then.tokens <= 15 for first, then in sessions)


def test_costs_are_the_flops_of_training_and_the_bytes_of_the_cache():
    config = toy_config(mixers=MIXERS, head_dim=32)
    matrix_units = dataclasses.replace(CHIPS["v6e"], bandwidth=math.inf)
    memory = dataclasses.replace(CHIPS["v6e"], flops=math.inf)
    costs = Costs.of(config, "ultraquant", matrix_units)
    length, logits = 1536, 2 * config.embed * config.vocab
    flops = lambda seconds: seconds * matrix_units.flops
    expected = length * forward_flops(config, length) - (length - 1) * logits
    assert flops(costs.prefill_s(0, length)) == pytest.approx(expected)
    parts = costs.prefill_s(0, 1000) + costs.prefill_s(1000, length - 1000)
    assert flops(parts) == pytest.approx(expected + logits)
    assert flops(costs.decode_s(2, 0)) == pytest.approx(2 * costs.flops)
    assert costs.size.bytes(700) == cache_bytes(config, 700, kv_format="ultraquant")
    assert costs.size.token == 2 * 17 * (1 + 2)  # a KV head in the first layer, two in the second
    one = dataclasses.replace(costs, chip=memory).decode_s(1, 699) * memory.bandwidth
    assert one == costs.weights + 2 * costs.size.state + 700 * costs.size.token


def test_layouts_keep_the_kv_heads_that_are_said():
    kept = [
        sum(len(set(map(c.kv_head, c.softmax_heads(layer)))) for layer in range(c.layers))
        for c in layouts(qwen3("1.7b")).values()
    ]
    assert kept == [224, 56, 42]


def test_a_script_asks_for_facts_of_the_first_turn():
    settings = ScriptSettings(sessions=2, rounds=8, facts=6)
    symbols = NeedleSymbols(np.arange(100, 132), np.arange(200, 232))
    prefix, sessions = write_script(settings, symbols, np.arange(1000) % 90)
    assert len(prefix) == 60 and len(sessions) == 2
    for questions in sessions:
        first = questions[0].tokens.tolist()
        assert [len(q.tokens) for q in questions] == [40] + [18] * 7
        for question in questions:
            place = first.index(question.tokens[-1])
            assert first[place + 1 : place + 3] == question.answer
        assert len({q.tokens[-1] for q in questions if not q.again}) == 6
        assert [q.again for q in questions] == [False] * 6 + [True] * 2


def test_replies_with_eviction_equal_replies_without_it():
    config, rng = toy_config(mixers=MIXERS[:1]), np.random.default_rng(0)
    ask = lambda tokens: Question(rng.integers(10, size=tokens), [0, 0], False)
    sessions = [[ask(4), ask(2), ask(2)] for _ in range(3)]
    script = Script(rng.integers(10, size=4), sessions)
    reader = Reader(
        config, init_params(config, jax.random.key(0)), None, capacity=20, dtype=jnp.float32
    )
    found = {}
    for budget in (math.inf, 2 * reader.size.bytes(13), 0):
        replay = Replay(reader, script, chunk=1, budget=budget)
        replay.run()
        found[budget] = replay
    none, some, every = found.values()
    assert none.replies == some.replies == every.replies
    assert len(set(map(tuple, none.replies))) > 1
    hits = lambda replay: [one.hit for one in replay.turns if one.round]
    assert all(hits(none)) and not any(hits(every)) and set(hits(some)) == {True, False}
    assert [one.read for one in none.turns] == [4] * 3 + [3] * 6
    assert [one.read for one in every.turns] == [4] * 3 + [8] * 3 + [12] * 3
    assert all(one.resident == 1 for one in every.turns)
