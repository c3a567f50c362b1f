"""Readers against damage: a valid object or one printable line, never another exception, never long, never large."""

import copy
import functools
import json
import math
import random
import resource
import struct
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roofplan.calibrate import store
from roofplan.errors import RoofplanError
from roofplan.hwspecs import load
from roofplan.hwspecs.device import Cluster, Device, Host, Link, Part
from roofplan.hwspecs.lint import lint
from roofplan.simulator.workload import local, zoo
from roofplan.simulator.workload.gguf import read_gguf
from roofplan.simulator.workload.hf import parse_config, read_config
from roofplan.simulator.workload.model import Model
from roofplan.simulator.workload.safetensors import read_safetensors

SECONDS, GROWTH_KIB = 2.0, 400 * 1024


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mapping(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


JUNK: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.0,
    7.5,
    10**9,
    2**31,
    2**63,
    10**400,
    10**5000,
    -(10**5000),
    0.0,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "8",
    "nan",
    "llama",
    "fp8",
    "x" * 5000,
    "\x00\x1b[31m\n\r\u2028\ud800",
    "\u202eevil",
    [],
    [0],
    [1, 2, 3],
    [True],
    [-1],
    [None] * 3000,
    ["a"],
    [[1]],
    {},
    {"a": 1},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "gptq", "bits": True, "group_size": -1},
    {"quant_method": "fp8", "bits": [1]},
    {"value": 1.0, "source": "driver", "kind": "measured"},
    {"value": math.nan, "source": "driver", "kind": "measured"},
    {1: 2, None: 3},
)


class Judge:
    """Runs cases, counts them, and holds every outcome to the contract."""

    def __init__(self) -> None:
        self.cases = self.accepted = 0
        self.memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def __call__(self, read: Callable[[], Any], what: object) -> Any:
        self.cases += 1
        start, result = time.perf_counter(), None
        try:
            result = read()
            self.accepted += 1
        except RoofplanError as error:
            line = str(error)
            assert line and line.isprintable() and len(line.splitlines()) == 1, (what, line)
            assert len(line) < 3000, (what, line[:300])
        except Exception as error:
            shown = what if isinstance(what, str | bytes | int) else repr(what)[:400] if small(what) else type(what)
            raise AssertionError(f"{type(error).__name__} escaped for {shown}: {error}"[:800]) from error
        assert time.perf_counter() - start < SECONDS, what
        return result

    def close(self, at_least: int) -> None:
        assert self.cases >= at_least, f"only {self.cases} cases"
        assert 0 < self.accepted < self.cases, (
            f"{self.accepted} of {self.cases} accepted: the mutations are too {'weak' if self.accepted else 'strong'}"
        )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.memory
        assert grown < GROWTH_KIB, f"{grown} KiB more than before"


def small(what: object) -> bool:
    try:
        return len(repr(what)) < 10_000
    except (ValueError, RecursionError):
        return False


def sane(model: Model) -> None:
    """What a reader lets through must be usable: sizes within sense and countable."""
    assert 1 <= model.layers <= 4096 and len(model.tensors) < 100 * len(model.blocks)
    assert 0 < model.active_parameters <= model.parameters < 1e24
    for block in model.blocks:
        assert block.attention is None or block.attention.heads % block.attention.kv_heads == 0


# ---- config.json

EXTRA = {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 128, "head_dim": 64}
QUANTISED = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}


def families() -> dict[str, dict[str, Any]]:
    """One bundled config of each family: readers differ by family, not by model."""
    found: dict[str, dict[str, Any]] = {}
    for line in zoo.ZOO.read_text(encoding="utf-8").splitlines():
        if zoo.ONE_PASS in line:  # tests/test_passes.py damages those
            continue
        config = json.loads(line)["config"]
        found.setdefault(config["model_type"], config)
    return found


FAMILIES = families()


def variants(family: str) -> list[dict[str, Any]]:
    """As it stands, and quantised with a sliding window."""
    plain = FAMILIES[family]
    return [plain, plain | EXTRA | QUANTISED]


def configs() -> list[dict[str, Any]]:
    return [config for family in FAMILIES for config in variants(family)]


def routes(config: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Every key, and every key of the sections for text, sight and sound."""
    for key, value in config.items():
        yield (key,)
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            yield from ((key, inner) for inner in value)


def changed(config: dict[str, Any], route: tuple[str, ...], *value: object) -> dict[str, Any]:
    """The config with another value there, or without one."""
    key, *inner = route
    if inner:
        return config | {key: changed(config[key], tuple(inner), *value)}
    return config | {key: value[0]} if value else {k: v for k, v in config.items() if k != key}


def parse(config: object) -> Model:
    model = parse_config(config, name="fuzz", file="fuzz.json")
    sane(model)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_every_family_with_every_junk(family: str) -> None:
    judge = Judge()
    for config in variants(family):
        for route in routes(config):
            judge(lambda c=config, r=route: parse(changed(c, r)), f"{route} dropped")
            for junk in JUNK:
                judge(lambda c=config, r=route, j=junk: parse(changed(c, r, j)), {route: junk, "family": family})
    judge.close(500)


def test_every_key_of_quantisation_with_every_junk() -> None:
    judge = Judge()
    for junk in JUNK:
        judge(lambda j=junk: parse(j), junk)
        for key in ("quant_method", "bits", "group_size"):
            quantised = copy.deepcopy(configs()[0] | QUANTISED)
            quantised["quantization_config"][key] = junk
            judge(lambda q=quantised: parse(q), {key: junk})
        for method in ("fp8", "modelopt", "compressed-tensors"):
            for key in ("weight_block_size", "quant_algo", "config_groups", "ignore"):
                quantised = configs()[0] | {"quantization_config": {"quant_method": method, key: junk}}
                judge(lambda q=quantised: parse(q), {method: {key: junk}})
        for key in ("type", "num_bits", "group_size", "symmetric"):
            weights = {"type": "int", "num_bits": 4, "group_size": 32, "symmetric": True, key: junk}
            groups = {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}
            judge(lambda q=groups: parse(configs()[0] | {"quantization_config": q}), {key: junk})
        judge(lambda j=junk: parse({"model_type": "other", "text_config": j}), {"text_config": junk})
    judge.close(800)


def test_many_keys_damaged_at_once() -> None:
    judge, rng, bases = Judge(), random.Random(1), configs()
    for _ in range(4000):
        config = dict(rng.choice(bases))
        for route in rng.sample(sorted(routes(config)), rng.randint(1, 4)):
            if isinstance(config.get(route[0]), dict) or len(route) == 1:  # its section may be damaged already
                value = rng.choice((*JUNK, rng.randint(-5, 300), rng.uniform(0, 9), rng.randint(1, 2**40)))
                config = changed(config, route, value)
        judge(lambda c=config: parse(c), config)
    judge.close(4000)


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert or repeat bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                data = data[:at]
            case 2:
                data[at:at] = bytes(rng.choices(b'{}[]",:0123456789eE-+.nul\x00\xff \n=_x', k=rng.randint(1, 8)))
            case 3:
                del data[at : at + rng.randint(1, 40)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 60)]
            case 5:
                data[at:at] = str(10 ** rng.randint(1, 350)).encode()
    return bytes(data)


def test_damaged_bytes_of_config_json(tmp_path: Path) -> None:
    judge, rng, file = Judge(), random.Random(2), tmp_path / "config.json"
    raws = [json.dumps(c, indent=1).encode() for c in configs()]
    for _ in range(3000):
        file.write_bytes(raw := damaged(rng.choice(raws), rng))
        judge(lambda: sane(read_config(file)), raw)
    judge.close(3000)


@pytest.mark.parametrize("reader", [read_config, store.read, read_gguf, lambda p: load.read(Device, p)])
def test_hostile_files(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    """Deep nesting at every depth around the recursion limit, endless numbers, and files that are none."""
    base = json.dumps(configs()[0])[:-1]
    raws = [
        b"",
        b"\x00" * 64,
        b"\xff\xfe" * 40,
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"\xef\xbb\xbf{}",
        b"null",
        b'"' * 9,
    ]
    for depth in (*range(880, 1010, 2), 5000):
        raws.append(f'{base}, "hidden_size": {"[" * depth}{"]" * depth}}}'.encode())
    for digits in (400, 4299, 4300, 4301, 100_000):
        raws.append(f'{base}, "hidden_size": {"9" * digits}}}'.encode())
        raws.append(f"schema = 0x{'f' * digits}".encode())
        raws.append(f"schema = 1\nname = {'9' * digits}".encode())
    hexes = f"schema = 1\nsm_count = {{ value = 0x{'f' * 5000}, source = 's', kind = 'measured' }}\n"
    raws.append(hexes.encode() + b"[sources]\ns = { title = 't', publisher = 'p' }")
    raws.append(f"schema = 1\n[sources]\ns = {{ title = 't', publisher = 'p', where = 0x{'f' * 5000} }}".encode())
    for depth in (300, 990, 3000):
        raws.append(
            f"schema = 1\nsm_count.{'a.' * depth}a = 1\n[sources]\ns = {{ title = 't', publisher = 'p' }}".encode()
        )
    judge, file = Judge(), tmp_path / "hostile.toml"
    for raw in raws:
        file.write_bytes(raw)
        judge(lambda: reader(file), raw[:60])
    for path in (tmp_path, tmp_path / "missing", file / "below", Path("/dev/null"), tmp_path / ("x" * 5000)):
        judge(lambda p=path: reader(p), str(path)[:60])
    assert judge.cases > 80


def test_names_that_are_none() -> None:
    judge = Judge()
    texts = [j for j in JUNK if isinstance(j, str)] + [
        "x" * 300 + ".toml",
        "2x" + "y" * 5000,
        "a/" * 3000,
        "\x00.toml",
        ".",
    ]
    for text in [*texts, "~", "/", "..", "0x", "x", "2x", "2x2x2xh200", "999999999x" + "h" * 300, "9" * 5000 + "xh200"]:
        for name in (text, text + ".json", text + ".gguf", text + ".toml"):
            judge(lambda n=name: zoo.resolve(n), name[:60])
            judge(lambda n=name: load.load_fleet(n), name[:60])
            judge(lambda n=name: load.load(Host, n), name[:60])
    assert judge.cases > 200


# ---- GGUF


def gguf_bytes() -> bytes:
    """A whole small file, written by hand after the specification."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def pair(key: str, kind: int, packed: bytes) -> bytes:
        return text(key) + struct.pack("<I", kind) + packed

    numbers = {"block_count": 2, "embedding_length": 32, "feed_forward_length": 64, "context_length": 128}
    numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
    pairs = [pair("general.architecture", 8, text("llama")), pair("general.alignment", 4, struct.pack("<I", 32))]
    pairs += [pair(f"llama.{k}", 4, struct.pack("<I", v)) for k, v in numbers.items()]
    words = struct.pack("<IQ", 8, 5) + b"".join(text(w) for w in ("a", "b", "", "dd", "e"))
    pairs.append(pair("tokenizer.ggml.tokens", 9, words))
    pairs.append(pair("tokenizer.ggml.scores", 9, struct.pack("<IQ5f", 6, 5, *range(5))))
    pairs.append(pair("nested", 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQ2B", 0, 2, 1, 2) * 2))
    layer = {"attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32, "ffn_gate": 64, "ffn_up": 64}
    shapes = {"token_embd.weight": (32, 50), "output_norm.weight": (32,)}
    for i in range(2):
        shapes |= {f"blk.{i}.{stem}.weight": (32, rows) for stem, rows in layer.items()}
        shapes |= {f"blk.{i}.ffn_down.weight": (64, 32), f"blk.{i}.attn_norm.weight": (32,)}
    infos, offset = [], 0
    for name, shape in shapes.items():
        infos.append(text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 8, offset))
        offset += -(-math.prod(shape) // 32 * 34 // 32) * 32 + 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    return head + b"\x00" * (-len(head) % 32 + offset)


def test_damaged_gguf_headers(tmp_path: Path) -> None:
    judge, rng, file, whole = Judge(), random.Random(3), tmp_path / "m.gguf", gguf_bytes()
    head = whole.index(b"\x00" * 200)

    def read(data: bytes, what: object) -> None:
        file.write_bytes(data)
        judge(lambda: sane(read_gguf(file)), what)

    read(whole, "undamaged")
    assert judge.accepted == 1
    for at in range(head):
        read(whole[:at], f"cut at {at}")
        for value in (0, 1, 0x7F, 0xFF, whole[at] ^ 1 << rng.randrange(8)):
            read(whole[:at] + bytes([value]) + whole[at + 1 :], f"byte {at} = {value}")
    for _ in range(2000):
        at, huge = rng.randrange(4, head), rng.choice((2**16, 2**24, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1))
        read(whole[:at] + struct.pack("<Q", huge) + whole[at + 8 * rng.randrange(2) :], f"{huge} at {at}")
        read(damaged(whole[:head], rng) + whole[head:], "damaged")
    judge.close(8000)


# ---- hardware TOML


def hardware_files() -> Iterator[tuple[type[Part], Path]]:
    """One file of each set of keys: those with the same keys are read alike."""
    seen = set()
    for part in (Device, Host, Link, Cluster):
        for name in load.names(part):
            path = load.path_of(part, name)
            kind = (part, frozenset(tomllib.loads(path.read_text(encoding="utf-8"))))
            if kind not in seen:
                seen.add(kind)
                yield part, path


def toml(value: Any) -> str:
    """A value as TOML text, as far as TOML can say it."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**70:
        return f"{'-' if value < 0 else ''}{'9' * 400}" if value < 0 else hex(value)
    return {"None": "1979-05-27", "True": "true", "False": "false"}.get(
        str(value), json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    )


def read_part(part: type[Part], file: Path) -> None:
    lint(load.read(part, file))


def test_damaged_bytes_of_every_hardware_file(tmp_path: Path) -> None:
    judge, rng, file = Judge(), random.Random(4), tmp_path / "part.toml"
    for part, path in hardware_files():
        raw = path.read_bytes()
        for _ in range(150):
            file.write_bytes(data := damaged(raw, rng))
            judge(lambda p=part: read_part(p, file), data)
    judge.close(2000)


def test_every_value_of_every_hardware_file_with_junk(tmp_path: Path) -> None:
    judge, rng, file = Judge(), random.Random(5), tmp_path / "part.toml"
    for part, path in hardware_files():
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        lines = {key: f"{key} = {toml(value)}" for key, value in table.items()}
        for key, value in table.items():
            for junk in rng.sample(JUNK, 6):
                for inner in (None, *list(value)[:2]) if isinstance(value, dict) else (None,):
                    damaged_value = junk if inner is None else value | {inner: junk}
                    text = "\n".join((lines | {key: f"{key} = {toml(damaged_value)}"}).values())
                    file.write_text(text, encoding="utf-8", errors="replace")
                    judge(lambda p=part: read_part(p, file), f"{path.name}: {key}.{inner} = {type(junk).__name__}")
    judge.close(4000)


# ---- calibration files


def test_every_value_of_a_calibration_file_with_junk(tmp_path: Path) -> None:
    judge, rng = Judge(), random.Random(6)
    content = json.loads(store.bundled_files()[0].read_text(encoding="utf-8"))
    content["calibrations"] = content["calibrations"][:2]

    def places(value: Any, route: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield (*route, key)
            yield from places(value[key], (*route, key))

    for number, route in enumerate(places(content)):
        for junk in rng.sample([j for j in JUNK if not isinstance(j, dict) or None not in j], 15):
            changed = copy.deepcopy(content)
            inside = changed
            for step in route[:-1]:
                inside = inside[step]
            inside[route[-1]] = 10**4000 if junk == 10**5000 else -(10**4000) if junk == -(10**5000) else junk
            file = tmp_path / f"{number}.json"
            file.write_text(json.dumps(changed), encoding="utf-8")
            store.read.cache_clear()
            judge(lambda f=file: store.read(f), f"{route} = {type(junk).__name__}")
            file.unlink()
    judge.close(1000)


# ---- safetensors, manifests, caches

SMALL = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50,
    "num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": False,
}  # fmt: skip


def safetensors_header() -> dict[str, Any]:
    layer = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32)}
    layer |= {
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (64, 32),
        "mlp.up_proj": (64, 32),
        "mlp.down_proj": (32, 64),
    }
    shapes = {"model.embed_tokens.weight": (50, 32), "lm_head.weight": (50, 32), "model.norm.weight": (32,)}
    for i in range(2):
        shapes |= {f"model.layers.{i}.{stem}.weight": shape for stem, shape in layer.items()}
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    return header


def test_damaged_safetensors(tmp_path: Path) -> None:
    judge, rng, file, header = Judge(), random.Random(4), tmp_path / "model.safetensors", safetensors_header()
    (tmp_path / "config.json").write_text(json.dumps(SMALL))

    def read(raw: bytes, what: object) -> None:
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(60_000))
        judge(lambda: sane(read_safetensors(file)), what)

    raw = json.dumps(header).encode()
    read(raw, "undamaged")
    assert judge.accepted == 1
    for name in list(header)[:4]:
        for junk in JUNK:
            changed = copy.deepcopy(header)
            for place in ("dtype", "shape", "data_offsets"):
                try:
                    read(json.dumps({**changed, name: {**changed[name], place: junk}}).encode(), {name: junk})
                    read(json.dumps({**changed, name: junk}).encode(), {name: junk})
                except (TypeError, ValueError, RecursionError, UnicodeEncodeError):  # junk that JSON cannot hold
                    continue
    for _ in range(2000):
        read(damaged(raw, rng), "damaged")
    whole = struct.pack("<Q", len(raw)) + raw + bytes(60_000)
    for _ in range(500):
        file.write_bytes(damaged(whole[:60], rng) + whole[60:])
        judge(lambda: sane(read_safetensors(file)), "damaged at the start")
    judge.close(2500)


def test_damaged_indices(tmp_path: Path) -> None:
    judge, rng, index = Judge(), random.Random(5), tmp_path / "model.safetensors.index.json"
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    raw = json.dumps(safetensors_header()).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(60_000))
    listed = json.dumps({"metadata": {"total_size": 1}, "weight_map": {"x": "a.safetensors", "y": "a.safetensors"}})
    index.write_text(listed)
    judge(lambda: sane(read_safetensors(index)), "undamaged")
    assert judge.accepted == 1
    for _ in range(2000):
        index.write_bytes(raw := damaged(listed.encode(), rng))
        judge(lambda: sane(read_safetensors(index)), raw)
    judge.close(2000)


def test_damaged_caches_and_manifests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of other programs, and names of all kinds asked of them; the list of what is there never breaks."""
    judge, rng = Judge(), random.Random(6)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    folder = tmp_path / "hub/models--acme--m"
    snapshot = folder / "snapshots/abc"
    for path in (
        snapshot,
        folder / "refs",
        tmp_path / "ollama/blobs",
        tmp_path / "ollama/manifests/registry.ollama.ai/library/m",
    ):
        path.mkdir(parents=True)
    digest = "a" * 64
    (tmp_path / f"ollama/blobs/sha256-{digest}").write_bytes(gguf_bytes())
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"}
    whole = {
        snapshot / "config.json": json.dumps(SMALL).encode(),
        folder / "refs/main": b"abc",
        tmp_path / "ollama/manifests/registry.ollama.ai/library/m/7b": json.dumps({"layers": [layer]}).encode(),
        tmp_path / ".lmstudio-home-pointer": str(tmp_path / "studio").encode(),
    }

    def restore() -> None:
        for path, raw in whole.items():
            path.write_bytes(raw)

    def everything() -> None:
        for found in local.listed():
            model, problem = local.readable(found)
            assert (model is None) is bool(problem)

    restore()
    for name in ("acme/m", "m:7b", "ollama:m:7b"):
        judge(lambda n=name: sane(zoo.resolve(n)), name)
    assert judge.accepted == 3
    for _ in range(800):
        path = rng.choice(list(whole))
        path.write_bytes(raw := damaged(whole[path], rng))
        name = "m:7b" if "ollama" in str(path) else "acme/m"
        judge(lambda n=name: sane(zoo.resolve(n)), raw)
        judge(everything, raw)
        restore()
    names = [j for j in JUNK if isinstance(j, str)]
    names += [
        "ollama:",
        "ollama:/",
        "ollama:" + "x" * 9000,
        "a/b:c:d",
        "hf.co/",
        "hf.co/a/b",
        ":",
        "a:",
        "a/b@",
        "a/../b",
        "../a",
    ]
    for name in names:
        for shape in ("{}", "ollama:{}", "acme/{}", "{}/m", "acme/m:{}", "{}:7b", "{}@q4", "hf.co/acme/{}"):
            judge(functools.partial(zoo.resolve, shape.format(name)), name[:60])
    judge.close(1700)


def test_quantisation_configs_of_every_method() -> None:
    """Each field of each published config replaced by junk, and whole configs mixed with each other."""
    judge, rng = Judge(), random.Random(7)
    bases = [
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}},
        {"quant_method": "torchao", "quant_type": "int4_weight_only", "quant_type_kwargs": {"group_size": 64}},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*down": {"bits": 8}, "-:.*up": {}}},
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"model.layers.0": {"quant_algo": "FP8"}},
        },
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.1*", "re:.*q_proj"]},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {
                "a": {"weights": {"type": "int", "num_bits": 4, "group_size": 32}, "targets": ["re:.*mlp.*"]},
                "b": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}, "targets": ["Linear"]},
            },
        },
        {"bits": 4, "group_size": 64, "model.layers.0.mlp.down_proj": {"bits": 8}, "lm_head": False},
    ]  # fmt: skip
    config = configs()[0]

    def read(quantisation: object) -> None:
        model = parse(config | {"quantization_config": quantisation})
        assert 0 < model.weight_bytes(model.native) < 1e15

    def changed(value: Any, junk: object) -> Any:
        """A copy with one place, however deep, replaced."""
        if isinstance(value, dict) and value and rng.random() < 0.8:
            key = rng.choice(list(value))
            return {**value, key: changed(value[key], junk)}
        if isinstance(value, list) and value and rng.random() < 0.8:
            at = rng.randrange(len(value))
            return [*value[:at], changed(value[at], junk), *value[at + 1 :]]
        return junk

    for base in bases:
        judge(lambda b=base: read(b), base)
    assert judge.accepted == len(bases)
    for base in bases:
        for junk in JUNK:
            for _ in range(6):
                judge(functools.partial(read, changed(base, junk)), {str(base)[:60]: junk})
        for other in bases:
            judge(functools.partial(read, {**base, **other}), base)
            judge(functools.partial(read, {**other, "quant_method": base.get("quant_method")}), base)
    judge.close(2000)
