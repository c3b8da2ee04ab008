"""What the model says about a recording, as a result that a person or a program can read."""

from dataclasses import asdict, dataclass, field


@dataclass
class Explanation:
    """Emotion of a recording with its reasons.

    Arguments
    ---------
    name : str
        File, or what the caller called the audio.
    emotion : str
        The label with the highest probability.
    probabilities : dict of str to float
        Label -> probability: softmax of the scores divided by the temperature fitted on validation data.
    scores : dict of str to float
        Label -> mean log-likelihood of the label's tokens and the end token, in nats.
    condition : str
        ``own_chain``: scored after the model's own transcript and descriptors. ``speech``: asked for
        directly.
    descriptors : dict of str to (str or list of str or None)
        What the model wrote; None where it wrote no allowed value. A list for fields of words.
    transcript : str or None
        What the model understood; None where it is not asked for it or wrote none.
    description : str or None
        The model's own sentence, where its answer has a field ``description``.
    sentence : str
        One sentence made of emotion, probability, descriptors and measurements.
    measured : dict of str to (float or None)
        Measurements of the signal (see ``speechbrain_emo.dataio.descriptors``), empty where none were asked
        for.
    measured_descriptors : dict of str to str
        The descriptors that the measurements give under the training's thresholds.
    warnings : list of str
        What contradicts: a descriptor and its measurement, the written emotion and the scored one.
    generated : str or None
        The whole answer as written.
    duration : float
        Seconds.
    percentiles : dict of str to (float or None)
        Descriptor -> where its measurement lies among the training utterances, in [0, 100].
    compared_with : dict of str to (str or None)
        Descriptor -> whom that is: ``female``, ``male`` or ``all`` training speakers.
    certain : bool
        False where the probability lies below ``abstain_below``, or no speech was found: the model then names no
        emotion, and ``emotion`` is its best guess only.
    abstain_below : float
        Threshold on the probability, chosen on validation data; 0 never abstains.

    Example
    -------
    >>> e = Explanation("a.wav", "sad", {"sad": 0.75, "happy": 0.25}, {"sad": -1.0, "happy": -2.1}, "speech",
    ...                 {"pitch": "low"}, "good day", None, "Sounds sad (75 %): low pitch.")
    >>> print(e)
    a.wav: sad (75 %)
      Sounds sad (75 %): low pitch.
      probabilities: sad 75 %, happy 25 %
      descriptors:   pitch low
      transcript:    good day
    """

    name: str
    emotion: str
    probabilities: dict[str, float]
    scores: dict[str, float]
    condition: str
    descriptors: dict[str, str | list[str] | None]
    transcript: str | None
    description: str | None
    sentence: str
    measured: dict[str, float | None] = field(default_factory=dict)
    measured_descriptors: dict[str, str | None] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    generated: str | None = None
    duration: float = 0.0
    percentiles: dict[str, float | None] = field(default_factory=dict)
    compared_with: dict[str, str | None] = field(default_factory=dict)
    certain: bool = True
    abstain_below: float = 0.0

    ok = True

    @property
    def probability(self):
        """Probability of ``emotion``."""
        return self.probabilities[self.emotion]

    @property
    def answer(self):
        """The emotion with its probability, or that it is not sure, and between what."""
        return answer_phrase(self.probabilities, self.certain)

    def to_dict(self):
        """All fields as plain values for JSON."""
        return {"ok": True, "answer": self.answer, **asdict(self)}

    def __str__(self):
        lines = [f"{self.name}: {self.answer}", f"  {self.sentence}"]

        def add(title, text):
            if text:
                lines.append(f"  {title + ':':<15}{text}")

        ranked = sorted(self.probabilities.items(), key=lambda item: -item[1])
        add("probabilities", ", ".join(f"{label} {percent(p)}" for label, p in ranked))
        add("descriptors", ", ".join(f"{n} {describe_value(v)}" for n, v in self.descriptors.items()))
        add("transcript", self.transcript)
        add("description", self.description)
        add("measured", ", ".join(f"{n} {format_measurement(n, v)}" for n, v in self.measured.items()))
        for warning in self.warnings:
            add("warning", warning)
        return "\n".join(lines)


@dataclass
class Failure:
    """A recording that could not be explained, in the place of its explanation.

    Arguments
    ---------
    name : str
        File, or what the caller called the audio.
    error : str
        One sentence that names the file and says what is wrong with it.

    Example
    -------
    >>> print(Failure("a.wav", "a.wav: no such file"))
    a.wav: no such file
    """

    name: str
    error: str

    ok = False

    def to_dict(self):
        """All fields as plain values for JSON."""
        return {"ok": False, **asdict(self)}

    def __str__(self):
        return self.error


def percent(probability):
    """A probability as a reader expects it.

    Example
    -------
    >>> percent(0.824), percent(0.001), percent(0.999)
    ('82 %', '<1 %', '>99 %')
    """
    if 0.0 < probability < 0.005:
        return "<1 %"
    if 0.995 < probability < 1.0:
        return ">99 %"
    return f"{100 * probability:.0f} %"


def describe_value(value):
    """A descriptor's value as text.

    Example
    -------
    >>> describe_value(["never", "again"]), describe_value(None), describe_value([])
    ('never, again', 'unclear', 'none')
    """
    if value is None:
        return "unclear"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return value


_UNITS = {
    "duration": "{:.2f} s",
    "active_duration": "{:.2f} s",
    "voiced_share": "{:.0%}",
    "f0_median": "{:.0f} Hz",
    "f0_range": "{:.1f} semitones",
    "level": "{:.1f} dB",
    "syllable_rate": "{:.1f} syllables/s",
    "nuclei_rate": "{:.1f} syllables/s",
}
# Descriptor -> how its measurement is called, and the quantities that stand behind it, the first known one
# counts.
MEASURED_AS = {
    "pitch": ("median F0", ("f0_median",)),
    "volume": ("level", ("level",)),
    "speed": ("rate", ("syllable_rate", "nuclei_rate")),
}


def format_measurement(name, value):
    """A measurement with its unit.

    Example
    -------
    >>> format_measurement("f0_median", 230.7), format_measurement("level", None)
    ('231 Hz', 'none')
    """
    return "none" if value is None else _UNITS.get(name, "{:g}").format(value)


def ordinal(number):
    """A whole number as an ordinal.

    Example
    -------
    >>> [ordinal(n) for n in (1, 11, 22, 83, 100)]
    ['1st', '11th', '22nd', '83rd', '100th']
    """
    teen = 10 <= number % 100 <= 20
    return f"{number}{'th' if teen else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def place_phrase(name, percentiles, compared_with):
    """Where a measurement lies in training, as a phrase; None where that is not known.

    Example
    -------
    >>> place_phrase("pitch", {"pitch": 83.6}, {"pitch": "female"})
    '84th percentile of female speakers'
    >>> place_phrase("pitch", {"pitch": 0.2}, {"pitch": "male"})
    'below nearly all male speakers'
    """
    place, group = (percentiles or {}).get(name), (compared_with or {}).get(name)
    if place is None or group is None:
        return None
    if not 0 < round(place) < 100:
        everybody = "all" if group == "all" else f"all {group}"
        return f"{'above' if place > 50 else 'below'} nearly {everybody} speakers"
    return f"{ordinal(round(place))} percentile of {group} speakers"


def measurement_phrase(name, measured, percentiles=None, compared_with=None):
    """What was measured for a descriptor, as a phrase; None where nothing was.

    Example
    -------
    >>> measurement_phrase("pitch", {"f0_median": 230.7})
    'measured median F0 231 Hz'
    >>> measurement_phrase("pitch", {"f0_median": 230.7}, {"pitch": 83.6}, {"pitch": "female"})
    'measured median F0 231 Hz, 84th percentile of female speakers'
    """
    title, quantities = MEASURED_AS.get(name, (None, ()))
    for quantity in quantities:
        if measured.get(quantity) is not None:
            text = f"measured {title} {format_measurement(quantity, measured[quantity])}"
            place = place_phrase(name, percentiles, compared_with)
            return f"{text}, {place}" if place else text
    return None


def answer_phrase(probabilities, certain=True):
    """The best label with its probability, or the two best where the model is not sure.

    Example
    -------
    >>> answer_phrase({"happy": 0.41, "neutral": 0.38, "sad": 0.21}, certain=False)
    'not sure: happy 41 %, neutral 38 %'
    >>> answer_phrase({"happy": 0.9, "sad": 0.1})
    'happy (90 %)'
    """
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    if certain:
        return f"{ranked[0][0]} ({percent(ranked[0][1])})"
    return "not sure: " + ", ".join(f"{label} {percent(p)}" for label, p in ranked[:2])


def compose_sentence(answer, descriptors, measured, percentiles=None, compared_with=None):
    """One plain sentence: emotion, probability, then the descriptors with what was measured.

    Arguments
    ---------
    answer : str
        Of :func:`answer_phrase`.
    descriptors : mapping of str to (str or list of str or None)
        What the model wrote; what is None is left out.
    measured : mapping of str to (float or None)
        Measurements; may be empty.
    percentiles, compared_with : mapping, optional
        As in :class:`Explanation`.

    Returns
    -------
    str

    Example
    -------
    >>> compose_sentence("angry (82 %)", {"pitch": "high", "emphasis": ["never"]}, {"f0_median": 231.0})
    "Sounds angry (82 %): high pitch (measured median F0 231 Hz), emphasis on 'never'."
    """
    reasons = []
    for name, value in descriptors.items():
        if value is None:
            continue
        if isinstance(value, list):
            if value:
                reasons.append(f"{name} on " + " and ".join(repr(word) for word in value))
            continue
        reason = f"{value} {'voice' if name == 'gender' else name}"
        phrase = measurement_phrase(name, measured, percentiles, compared_with)
        reasons.append(f"{reason} ({phrase})" if phrase else reason)
    text = f"Not{answer[3:]}" if answer.startswith("not sure") else f"Sounds {answer}"
    return f"{text}: {', '.join(reasons)}." if reasons else f"{text}."
