"""Stores what a HydraHead model remembers between calls, as layers of `DynamicCache`."""

import torch
from transformers.cache_utils import DynamicCache, LinearAttentionAndFullAttentionLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.import_utils import is_tracing

from .packed_hydrahead import decoded, encoded, layer_formats

# The name of the cache in this version's outputs; both names are arguments of `forward`.
CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__annotations__ else "past_key_values"
GROWTH = 256  # tokens by which the storage of keys and values grows at once


class HydraHeadCacheLayer(LinearAttentionAndFullAttentionLayer):
    """Stores keys and values, three convolutions' last inputs, and the recurrent state.

    Keys and values are [B, K, S, H]; in a format their parts [B, K, S, ...] are stored in place of
    them. A layer with softmax heads only, or with delta-rule heads only, leaves the others None. A
    layer with slots stores their keys and values [B, K, M, H] and its tokens' positions as
    recurrent states; in place of a convolution's inputs it stores keys, values and gates
    [B, W, K, ...] of the tokens in its window.

    Attributes:
      kv_format: see `layer_formats`; None stores keys and values as given.
      parts: of the format, those of the keys first; None before the first token.
      tokens_seen: S, padding included.
      real_BS: False on padding; None where there was none. The first layer stores it for all.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, kv_format=None, **kwargs):
        super().__init__(number_of_states=3)
        self.kv_format, self.parts = kv_format, None
        self.tokens_seen = 0
        self.real_BS = None
        self.rooms = None

    def update(self, key_states, value_states, *args, **kwargs):
        """Appends [B, K, T, H] and returns the keys and values of all tokens.

        In a format these are what is stored where the call has one token, and else what is stored
        of the tokens before, and these as given.
        """
        new = (key_states, value_states)
        if self.kv_format is not None:
            return self._update_parts(*new)
        if self.keys is None:
            self.keys, self.values = new
        else:
            old = (self.keys.to(new[0].device), self.values.to(new[1].device))
            self.keys, self.values = self._append(old, new)
        self.device, self.is_initialized = key_states.device, True
        return self.keys, self.values

    def _update_parts(self, key_states, value_states):
        new = encoded(self.kv_format, key_states, value_states)
        earlier = self.parts and [part.to(key_states.device) for part in self.parts]
        self.parts = self._append(earlier, new) if earlier else new
        self.device, self.is_initialized = key_states.device, True
        restored = lambda parts: decoded(self.kv_format, parts, key_states.dtype)
        if key_states.shape[2] == 1 or self.tokens_seen == 1:
            return restored(self.parts)
        if not earlier:
            return key_states, value_states
        pairs = zip(restored(earlier), (key_states, value_states), strict=True)
        return [torch.cat(pair, dim=2) for pair in pairs]

    @property
    def has_keys(self) -> bool:
        """Says whether keys were stored, in a format or as given."""
        return self.keys is not None or self.parts is not None

    def _append(self, old, new):
        """Writes behind the stored tokens, where nobody needs the gradient and there is room."""
        needed = torch.is_grad_enabled() and any(x.requires_grad for x in (*old, *new))
        if needed or is_tracing(new[0]):
            return [torch.cat(pair, dim=2) for pair in zip(old, new, strict=True)]
        S, T = old[0].shape[2], new[0].shape[2]
        if not self._has_room(old, S + T):
            self.rooms = []
            for x_BKSH in old:
                B, K, _, H = x_BKSH.shape
                room = x_BKSH.new_empty(B, K, S + T + GROWTH, H)
                room[:, :, :S] = x_BKSH
                self.rooms.append(room)
        for room, x_BKTH in zip(self.rooms, new, strict=True):
            room[:, :, S : S + T] = x_BKTH
        return [room[:, :, : S + T] for room in self.rooms]

    def _has_room(self, old, length: int) -> bool:
        """Says whether `old` are the first tokens of rooms that this call may write to."""
        if self.rooms is None or length > self.rooms[0].shape[2]:
            return False
        if self.rooms[0].is_inference() and not torch.is_inference_mode_enabled():
            return False
        return all(
            x.data_ptr() == room.data_ptr() and x.dtype == room.dtype and len(x) == len(room)
            for x, room in zip(old, self.rooms, strict=True)
        )

    def update_conv_state(self, conv_states, state_idx=0, **kwargs):
        """Stores [B, M, taps - 1], or what a layer with slots has there."""
        self.conv_states[state_idx] = conv_states
        return conv_states

    def update_recurrent_state(self, recurrent_states, state_idx=0, **kwargs):
        """Stores [B, N, H, P], or what a layer with slots has there."""
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states

    def conv_state(self, state_idx: int, device):
        """Returns the stored inputs on `device`; None before the first token."""
        state = self.conv_states[state_idx]
        return None if state is None else state.to(device)

    def recurrent_state(self, device, state_idx: int = 0):
        """Returns the stored state on `device`; None before the first token."""
        state = self.recurrent_states[state_idx]
        return None if state is None else state.to(device)

    def get_seq_length(self) -> int:
        return self.tokens_seen

    @property
    def batch_size(self) -> int:
        for x in (self.keys, *(self.parts or ()), self.recurrent_states[0]):
            if x is not None:
                return x.shape[0]
        raise AttributeError("an empty cache layer has no batch size")

    def _change(self, change):
        self.rooms = None
        for name in ("keys", "values", "real_BS"):
            if (x := getattr(self, name)) is not None:
                setattr(self, name, change(x))
        self.parts = self.parts and [change(part) for part in self.parts]
        for states in (self.conv_states, self.recurrent_states):
            for index, x in states.items():
                if x is not None:
                    states[index] = change(x)

    def reorder_cache(self, beam_idx):
        self._change(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices):
        self._change(lambda x: x[indices.to(x.device) if torch.is_tensor(indices) else indices])

    def batch_repeat_interleave(self, repeats: int):
        self._change(lambda x: x.repeat_interleave(repeats, dim=0))

    def offload(self):
        self._change(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self):
        if self.device is not None:
            self._change(lambda x: x.to(self.device, non_blocking=True))

    def reset(self):
        self.__init__(self.kv_format)

    def crop(self, tokens_to_remove: int):
        if tokens_to_remove != 0:
            raise ValueError(
                "a HydraHead cache cannot be cropped, because a recurrent state holds no earlier "
                "state; start again with a new cache"
            )


def check_cache_implementation(keywords: dict, config) -> None:
    """Raises where `generate` would make a cache without states, before it is made."""
    config = keywords.get("generation_config") or config
    kind = keywords.get("cache_implementation") or getattr(config, "cache_implementation", None)
    if kind not in (None, "dynamic", "dynamic_full", "offloaded"):
        raise ValueError(
            f"cache_implementation={kind!r} is not supported, because a HydraHead model keeps "
            'recurrent states in its cache; use "dynamic" or "offloaded", or leave it out'
        )


def one_cache(past_key_values, cache):
    """Returns the cache given under either name, if it is one that this model can use."""
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("past_key_values and cache are two names of one argument; give only one")
    given = cache if cache is not None else past_key_values
    if given is not None and type(given) is not DynamicCache:
        raise ValueError(
            f"{CACHE_FIELD} is a {type(given).__name__}, and a HydraHead model keeps its state in "
            "a DynamicCache only; leave the argument (or cache_implementation) out"
        )
    return given


def prepare(cache: DynamicCache, config, kv_cache=None):
    """Gives a cache without tokens the layers of this model, and refuses another model's.

    Layers that are there keep their formats, and are refused if `kv_cache` names others.
    """
    ours = [isinstance(layer, HydraHeadCacheLayer) for layer in cache.layers]
    if all(ours) and len(ours) == config.num_hidden_layers:
        formats = [layer.kv_format for layer in cache.layers]
        if kv_cache is None or formats == layer_formats(config, kv_cache):
            return
        if cache.layers[0].tokens_seen:
            raise ValueError(
                f"{CACHE_FIELD} holds tokens in another format than kv_cache={kv_cache!r}; leave "
                "one of the two out"
            )
    elif any(ours) or any(_holds_something(layer) for layer in cache.layers):
        raise ValueError(f"{CACHE_FIELD} was filled by another model; leave it out")
    cache.layers[:] = map(HydraHeadCacheLayer, layer_formats(config, kv_cache))
    cache.layer_class_to_replicate = None


def _holds_something(layer) -> bool:
    states = [*getattr(layer, "conv_states", {}).values()]
    states += getattr(layer, "recurrent_states", {}).values()
    return any(x is not None for x in (getattr(layer, "keys", None), *states))
