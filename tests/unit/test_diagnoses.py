"""Each failure signature is provoked, and a healthy run is not accused."""

from speechbrain_emo.brains.diagnoses import diagnose_epoch, diagnose_results

HEALTHY = {
    "test.asr.generated.wer": 0.05,
    "test.ser.own_chain.ua": 0.75,
    "test.sed.generated.pitch": 0.8,
    "test.sed.generated.volume": 0.8,
    "test.sed.generated.speed": 0.8,
    "test.ser.generated.unparsable": 0.0,
}


def test_healthy_run():
    line = {"train": {"beta": 1e-3}, "valid": {"nll": 0.5, "kl/content": 50.0, "active_units/content": 20}}
    assert diagnose_epoch(line) == [] and diagnose_results(HEALTHY) == []


def test_early_plateau_while_kl_dominates():
    line = {"train": {"beta": 1.0}, "valid": {"nll": 1.0, "kl/content": 3.0, "active_units/content": 9}}
    (found,) = diagnose_epoch(line)
    assert "75 % of the loss" in found and "early plateau" in found
    assert diagnose_epoch(line, {"max_kl_share": 0.8}) == []


def test_collapsed_branch():
    line = {
        "train": {"beta": 1e-4},
        "valid": {"nll": 1.0, "kl/descriptor": 1e-4, "active_units/descriptor": 0},
    }
    assert "descriptor has collapsed" in diagnose_epoch(line)[0]


def test_undertrained_first_phase():
    assert (
        "recognition phase is undertrained" in diagnose_results({**HEALTHY, "test.asr.generated.wer": 0.8})[0]
    )


def test_poor_descriptors_with_good_ua():
    poor = {f"test.sed.generated.{n}": 0.35 for n in ("pitch", "volume", "speed")}
    assert "Poor descriptors" in diagnose_results({**HEALTHY, **poor})[0]


def test_unparsable_answers_are_told():
    assert (
        "5.0 % of the free answers" in diagnose_results({**HEALTHY, "test.ser.generated.unparsable": 0.05})[0]
    )
