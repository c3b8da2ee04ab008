"""Failure signatures that the papers and their readers name, told as sentences in logs and results.

Thresholds are keys of the YAML's ``diagnosis_thresholds``; the defaults stand below.
"""

THRESHOLDS = {
    # Share of the KL term in the loss above which it dominates: the early plateau of beta = 1.
    "max_kl_share": 0.5,
    # Latent dimensions whose mean varies over the data (Burda et al. 2016) that a branch needs.
    "min_active_units": 2,
    # WER above which transcripts are bad, UA and descriptor accuracy (means) above which they are good.
    "max_wer": 0.3,
    "min_ua": 0.6,
    "min_descriptors": 0.5,
}


def diagnose_epoch(line, thresholds=None):
    """Signatures in a line of the training log.

    Arguments
    ---------
    line : dict
        With ``train`` (``beta``) and ``valid`` (``nll``, ``kl/<branch>``, ``active_units/<branch>``).
    thresholds : dict, optional
        Over the defaults.

    Returns
    -------
    list of str

    Example
    -------
    >>> diagnose_epoch({"train": {"beta": 1.0}, "valid": {"nll": 1.0, "kl/content": 9.0}})[0][:12]
    'KL dominates'
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    found = []
    beta, valid = line["train"].get("beta", 0.0), line["valid"]
    for name, value in valid.items():
        kind, _, branch = name.partition("/")
        if kind == "kl" and beta > 0:
            share = beta * value / max(beta * value + valid.get("nll", 0.0), 1e-9)
            if share > limits["max_kl_share"]:
                found.append(
                    f"KL dominates: {100 * share:.0f} % of the loss with branch {branch} (beta {beta:.1e}); "
                    "expect an early plateau. Lower beta or anneal it."
                )
        if kind == "active_units" and beta > 0 and value < limits["min_active_units"]:
            found.append(
                f"Branch {branch} has collapsed: {value} active latent units, at least "
                f"{limits['min_active_units']} wanted. Lower beta."
            )
    return found


def diagnose_results(metrics, thresholds=None, split="test"):
    """Signatures in the metrics of an evaluation.

    Arguments
    ---------
    metrics : dict
        Of ``results.json``.
    thresholds : dict, optional
        Over the defaults.
    split : str
        First part of the keys.

    Returns
    -------
    list of str

    Example
    -------
    >>> bad = {"test.asr.generated.wer": 0.9, "test.ser.own_chain.ua": 0.7}
    >>> diagnose_results(bad)[0][:8]
    'High WER'
    """
    limits = {**THRESHOLDS, **(thresholds or {})}
    found = []
    wer = metrics.get(f"{split}.asr.generated.wer")
    ua = metrics.get(f"{split}.ser.own_chain.ua", metrics.get(f"{split}.ser.speech.ua"))
    fields = [metrics.get(f"{split}.sed.generated.{n}") for n in ("pitch", "volume", "speed")]
    fields = [f for f in fields if f is not None]
    if wer is not None and ua is not None and wer > limits["max_wer"] and ua >= limits["min_ua"]:
        found.append(
            f"High WER ({wer:.2f}) with normal UA ({ua:.2f}): the speech-recognition phase is undertrained. "
            "Give it more epochs."
        )
    if fields and ua is not None and ua >= limits["min_ua"]:
        mean = sum(fields) / len(fields)
        if mean < limits["min_descriptors"]:
            found.append(
                f"Poor descriptors (mean accuracy {mean:.2f}) with good UA ({ua:.2f}): the label does not come "
                "from the description. Raise the share of describe and explain tasks."
            )
    unparsable = metrics.get(f"{split}.ser.generated.unparsable")
    if unparsable:
        found.append(f"{100 * unparsable:.1f} % of the free answers name no allowed label.")
    return found
