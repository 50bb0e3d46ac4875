"""Computes mixers in numpy, by head and token: HydraHead (section 3 of the paper), native hybrid.

It shares no code with the project. Heads are the layer's own, in the teacher's order.
"""

import numpy as np

EPS = 1e-6


def hydra_heads(config, mixer, weights: dict, x_TD: np.ndarray) -> np.ndarray:
    """Returns the input of the output projection, [T, N, H], for one document."""
    weights = _float64(weights)
    group = config.query_heads // config.kv_heads
    kv_of_fa = sorted({n // group for n in mixer.fa_heads})
    gdn_heads = [n for n in range(config.query_heads) if n not in mixer.fa_heads]
    heads = []
    for n in range(config.query_heads):
        is_fa = n in mixer.fa_heads
        slots = mixer.choices.native_hybrid
        branch = weights["fa" if is_fa else "gdn" if slots is None else "slots"]
        i = list(mixer.fa_heads).index(n) if is_fa else gdn_heads.index(n)
        if mixer.choices.query_decomposition:
            qkv, q_index = branch["qkv"], i
            kv_index = kv_of_fa.index(n // group) if is_fa else i
            if slots is not None and not is_fa:
                kv_index = sorted({m // group for m in gdn_heads}).index(n // group)
        else:
            qkv, q_index, kv_index = weights["qkv"], n, n // group
        q_TH = x_TD @ qkv["w_q_DNH"][:, q_index]
        k_TH = x_TD @ qkv["w_k_DKH"][:, kv_index]
        v_TH = x_TD @ qkv["w_v_DKH"][:, kv_index]
        head = _softmax_head if is_fa else _delta_head
        if slots is not None and not is_fa:
            kv_heads = sorted({m // group for m in gdn_heads})
            gate_DM = branch["w_gate_slots_DKM"][:, kv_heads.index(n // group)]
            out_TH, _ = _native_hybrid_head(config, slots, qkv, gate_DM, x_TD, q_TH, k_TH, v_TH)
        else:
            out_TH = head(config, mixer.choices, branch, qkv, i, x_TD, q_TH, k_TH, v_TH)
        heads.append(_fuse(mixer.choices, weights, branch, i, is_fa, x_TD, out_TH))
    return np.stack(heads, axis=1)


def native_hybrid_heads(config, mixer, weights: dict, x_TD: np.ndarray):
    """Returns what W_O reads of one document, [T, N, H], and the slots' share of softmax, [T, N].

    Source: arXiv 2510.07019, section 3; of models from scratch, its code.
    """
    weights = _float64(weights)
    qkv, T, H = weights["qkv"], len(x_TD), config.head_dim
    out_TNH, share_TN = np.zeros((T, config.query_heads, H)), np.zeros((T, config.query_heads))
    for n in range(config.query_heads):
        kv = n // (config.query_heads // config.kv_heads)
        q_TH = x_TD @ qkv["w_q_DNH"][:, n]
        k_TH, v_TH = x_TD @ qkv["w_k_DKH"][:, kv], x_TD @ qkv["w_v_DKH"][:, kv]
        if mixer.value_silu:
            v_TH = v_TH * _sigmoid(v_TH)
        gates = weights.get("w_gate_slots_DKM")
        gate_DM = None if gates is None else gates[:, kv]
        projected = (x_TD, q_TH, k_TH, v_TH)
        found = _native_hybrid_head(config, mixer, qkv, gate_DM, *projected)
        out_TNH[:, n], share_TN[:, n] = found
    if mixer.output_norm:
        flat_TX = (out_TNH * _sigmoid(out_TNH)).reshape(T, -1)
        weight_X = weights["out_norm_NH"].reshape(-1)
        out_TNH = _rms_norm(flat_TX, weight_X, config.rms_eps).reshape(out_TNH.shape)
    return out_TNH, share_TN


def _native_hybrid_head(config, mixer, qkv, gate_DM, x_TD, q_TH, k_TH, v_TH):
    if mixer.qk_norm:
        q_TH = _rms_norm(q_TH, qkv["q_norm_H"], config.rms_eps)
        k_TH = _rms_norm(k_TH, qkv["k_norm_H"], config.rms_eps)
    (T, H), out_TH, share_T = q_TH.shape, np.zeros_like(v_TH), np.zeros(len(x_TD))
    turned = [_turn(x, config.rope_theta) for x in (q_TH, k_TH)]
    slots_k, slots_v = np.zeros((mixer.slots, H)), np.zeros((mixer.slots, H))
    window = T if mixer.window is None else mixer.window
    for t in range(T):
        if (j := t - window) >= 0:
            keep_M1 = (_sigmoid(x_TD[j] @ gate_DM) ** (1 / mixer.gate_normaliser))[:, None]
            slots_k = keep_M1 * slots_k + (1 - keep_M1) * k_TH[j]
            slots_v = keep_M1 * slots_v + (1 - keep_M1) * v_TH[j]
        seen = slice(max(0, t - window + 1), t + 1) if window else slice(0, 0)
        slot_power = np.exp(slots_k @ q_TH[t] / np.sqrt(H)) * (mixer.sinks or t >= window)
        power = np.exp(turned[1][seen] @ turned[0][t] / np.sqrt(H))
        total = slot_power.sum() + power.sum()
        out_TH[t] = (slot_power @ slots_v + power @ v_TH[seen]) / total
        share_T[t] = slot_power.sum() / total
    return out_TH, share_T


def _softmax_head(config, choices, branch, qkv, i, x_TD, q_TH, k_TH, v_TH):
    q_TH = _rms_norm(q_TH, qkv["q_norm_H"], config.rms_eps)
    k_TH = _rms_norm(k_TH, qkv["k_norm_H"], config.rms_eps)
    out_TH = np.zeros_like(v_TH)
    for t, q_H in enumerate(q_TH):
        scale = np.log(t + choices.log_scale_base) / np.log(choices.log_scale_base)
        scores = scale * k_TH[: t + 1] @ q_H / np.sqrt(len(q_H))
        shares = np.exp(scores - scores.max())
        out_TH[t] = shares @ v_TH[: t + 1] / shares.sum()
    return out_TH


def _delta_head(config, choices, branch, qkv, i, x_TD, q_TH, k_TH, v_TH):
    if choices.short_conv:
        taps = (branch[f"conv_{name}_WNH"][:, i] for name in "qkv")
        q_TH, k_TH, v_TH = (_conv(x, w) for x, w in zip((q_TH, k_TH, v_TH), taps, strict=True))
        if choices.conv_silu:
            q_TH, k_TH, v_TH = (x * _sigmoid(x) for x in (q_TH, k_TH, v_TH))
    q_TH = _unit(_turn(_rms_norm(q_TH, qkv["q_norm_H"], config.rms_eps), config.rope_theta))
    k_TH = _unit(_turn(_rms_norm(k_TH, qkv["k_norm_H"], config.rms_eps), config.rope_theta))
    step_T = np.log1p(np.exp(x_TD @ branch["w_a_DN"][:, i] + branch["dt_bias_N"][i]))
    alpha_T = np.exp(-np.exp(branch["a_log_N"][i]) * step_T)
    beta_T = _sigmoid(x_TD @ branch["w_b_DN"][:, i]) * (2 if choices.neg_eigval else 1)
    H = q_TH.shape[-1]
    state, out_TH = np.zeros((H, H)), np.zeros_like(v_TH)
    for t, (k, v) in enumerate(zip(k_TH, v_TH, strict=True)):
        state = alpha_T[t] * state @ (np.eye(H) - beta_T[t] * np.outer(k, k))
        state = state + beta_T[t] * np.outer(v, k)
        out_TH[t] = state @ q_TH[t] / np.sqrt(H)
    return out_TH


def _fuse(choices, weights, branch, i, is_fa, x_TD, out_TH):
    gate_TH = 2 * _sigmoid(x_TD @ branch["w_gate_DNH"][:, i])
    if choices.fusion == "none":
        return gate_TH * out_TH
    fused_TH = branch["gamma_N"][i] * gate_TH * _rms_norm(out_TH, branch["out_norm_H"], EPS)
    if choices.fusion == "gated":
        power_T2 = np.exp(x_TD @ weights["w_fusion_DX"])
        share_T = power_T2[:, 0 if is_fa else 1] / power_T2.sum(axis=1)
        fused_TH = fused_TH * 2 * share_T[:, None]
    return fused_TH


def _conv(x_TH, taps_WH):
    padded = np.concatenate([np.zeros((len(taps_WH) - 1, x_TH.shape[1])), x_TH])
    return np.stack([(padded[t : t + len(taps_WH)] * taps_WH).sum(0) for t in range(len(x_TH))])


def _turn(x_TH, theta):
    half = x_TH.shape[1] // 2
    angle = np.arange(len(x_TH))[:, None] * theta ** (-np.arange(half) / half)
    turned = (x_TH[:, :half] + 1j * x_TH[:, half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)


def _rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def _unit(x):
    return x / np.sqrt(np.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _float64(tree: dict) -> dict:
    return {
        k: _float64(v) if isinstance(v, dict) else np.asarray(v, np.float64)
        for k, v in tree.items()
    }
