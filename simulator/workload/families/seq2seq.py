"""Encoder-decoders: T5 and its kin, BART, Whisper. The encoder is a tower, the decoder attends to what it hands on.

Tokens of the source are those the encoder was made for: 512 for T5, all of BART's positions, Whisper's 30 seconds.
"""

from __future__ import annotations

from ..layers import Attention, Block, Mlp, Norms
from ..model import Model
from ..network import Conv, Layer, Network, Pointwise, repeated
from .encoders import t5_defaults, t5_gated, t5_layers
from .pieces import attention, feed_forward, norm, residual, stacked
from .reader import Reader

T5_POSITIONS = 512  # that the published checkpoints were trained on; nothing in the model ends there


def read(get: Reader) -> Model:
    """The model of one of these families."""
    return _READERS[get.family](get)


def t5(get: Reader) -> Model:
    """T5, mT5 and UMT5 (arXiv 1910.10683): RMS norms, no biases, a table of relative positions.

    The decoder's table belongs to its first layer (in UMT5 every layer has one); the encoder has its own.
    """
    get = t5_defaults(get).assuming(tie_word_embeddings=True, n_positions=T5_POSITIONS)
    width, heads, dim, tokens = (get.integer(key) for key in ("d_model", "num_heads", "d_kv", "n_positions"))
    table = get.integer("relative_attention_num_buckets") * heads
    own = get.family == "umt5"
    itself = Attention(heads, heads, dim)
    ffn = Mlp(get.integer("d_ff"), gated=t5_gated(get))
    block = Block("decoder", itself, ffn, crosses=itself._replace(cross=True), small=table if own else 0)
    depth = get.optional("num_decoder_layers") or get.integer("num_layers")
    encoder = Network("encoder", t5_layers(get, tokens), tokens=tokens)
    return get.model(
        width,
        [block] * depth,
        max_context=tokens,
        tied=get.flag("tie_word_embeddings"),
        small=0 if own else table,
        towers=(encoder,),
        encoder_tokens=tokens,
    )


def bart(get: Reader) -> Model:
    """BART (arXiv 1910.13461): learned positions (two rows more than stated), norms behind each half, biases."""
    get = get.assuming(
        d_model=1024, encoder_layers=12, decoder_layers=12, encoder_attention_heads=16, decoder_attention_heads=16,
        encoder_ffn_dim=4096, decoder_ffn_dim=4096, vocab_size=50265, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )  # fmt: skip
    width, tokens, tied = (
        get.integer("d_model"),
        get.integer("max_position_embeddings"),
        get.flag("tie_word_embeddings"),
    )
    rows, passed = tokens + 2, float(tokens * width)
    layer = (
        *residual(passed, attention(width, *_heads(get, "encoder"), tokens)),
        norm(width, tokens),
        *residual(passed, feed_forward(width, get.integer("encoder_ffn_dim"), tokens)),
        norm(width, tokens),
    )
    first = (Pointwise("positions", rows * width, passed), norm(width, tokens, name="embedding norm"))
    encoder = Network("encoder", (*first, *repeated(get.integer("encoder_layers"), layer)), tokens=tokens)
    block = _decoder_block(get, *_heads(get, "decoder"))
    return get.model(
        width,
        [block] * get.integer("decoder_layers"),
        max_context=tokens,
        tied=tied,
        positions=rows,
        norm_vectors=0,
        embed_norm_vectors=2,
        towers=(encoder,),
        encoder_tokens=tokens,
    )


def _heads(get: Reader, half: str) -> tuple[int, int]:
    key = f"{half}_attention_heads"
    heads = get.integer(key)
    return heads, get.divided(get.integer("d_model"), key, heads)


def _decoder_block(get: Reader, heads: int, dim: int, *, key_bias: bool = True) -> Block:
    itself = Attention(heads, heads, dim, qkv_bias=True, out_bias=True, key_bias=key_bias)
    ffn = Mlp(get.integer("decoder_ffn_dim"), bias=True, gated=False)
    return Block("decoder", itself, ffn, Norms(vectors=2), crosses=itself._replace(cross=True))


def whisper(get: Reader) -> Model:
    """Whisper (arXiv 2212.04356): two convolutions over 30 seconds of mel frames, keys without biases."""
    get = get.assuming(
        d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6, decoder_attention_heads=6,
        encoder_ffn_dim=1536, decoder_ffn_dim=1536, num_mel_bins=80, vocab_size=51865, max_source_positions=1500,
        max_target_positions=448, tie_word_embeddings=True,
    )  # fmt: skip
    width, tokens, bins = get.integer("d_model"), get.integer("max_source_positions"), get.integer("num_mel_bins")
    encoder = Network("encoder", whisper_encoder(get, width, tokens, bins), tokens=tokens)
    positions = get.integer("max_target_positions")
    return get.model(
        width,
        [_decoder_block(get, *_heads(get, "decoder"), key_bias=False)] * get.integer("decoder_layers"),
        max_context=positions,
        tied=get.flag("tie_word_embeddings"),
        positions=positions,
        norm_vectors=2,
        towers=(encoder,),
        encoder_tokens=tokens,
    )


def whisper_encoder(get: Reader, width: int, tokens: int, bins: int) -> tuple[Layer, ...]:
    """The layers of Whisper's encoder over `tokens` positions of two mel frames each."""
    passed = float(tokens * width)
    mixing = attention(width, *_heads(get, "encoder"), tokens, key_bias=False)
    layer = stacked(
        passed,
        residual(passed, [norm(width, tokens), *mixing]),
        residual(passed, [norm(width, tokens), *feed_forward(width, get.integer("encoder_ffn_dim"), tokens)]),
    )
    return (
        Conv("conv 1", bins, width, 3, 2 * tokens, 1, side_width=1),
        Pointwise("activation", 0, 2 * passed),
        Conv("conv 2", width, width, 3, tokens, 1, side_width=1),
        Pointwise("activation", 0, passed),
        Pointwise("positions", tokens * width, passed),
        *repeated(get.integer("encoder_layers"), layer),
        norm(width, tokens, name="final norm"),
    )


_READERS = {"t5": t5, "mt5": t5, "umt5": t5, "bart": bart, "whisper": whisper}
