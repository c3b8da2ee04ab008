"""A pronunciation for words that no dictionary has, from espeak-ng's rules, in the phones of the CMU dictionary."""

import functools

from speechbrain_emo.alignment.types import AlignmentError

# espeak-ng's mnemonics of its voice en-us (phsource/ph_english_us) -> ARPABET without stress, as in the CMU
# Pronouncing Dictionary. An empty value is a mark that adds no sound of its own.
_ARPABET = {
    **{"p": "P", "b": "B", "t": "T", "d": "D", "k": "K", "g": "G", "f": "F", "v": "V", "T": "TH", "D": "DH"},
    **{"s": "S", "z": "Z", "S": "SH", "Z": "ZH", "h": "HH", "tS": "CH", "dZ": "JH", "m": "M", "n": "N"},
    **{
        "N": "NG",
        "l": "L",
        "r": "R",
        "j": "Y",
        "w": "W",
        "t#": "T",
        "t2": "T",
        "*": "T",
        "d#": "D",
        "z#": "Z",
    },
    **{
        "n-": "AH N",
        "m-": "AH M",
        "l-": "AH L",
        "@L": "AH L",
        "x": "K",
        "X": "K",
        "C": "K",
        "?": "",
        "r-": "",
    },
    **{
        "Q": "K",
        "R": "R",
        "R2": "R",
        "l#": "L",
        "L": "L",
        "n^": "N Y",
        "l^": "L Y",
        "B": "V",
        "R3": "R",
        "w#": "W",
    },
    **{"@": "AH", "@2": "AH", "@5": "AH", "@#": "AH", "@-": "", "3": "ER", "3:": "ER", "@r": "ER", "a": "AE"},
    **{
        "aa": "AE",
        "a#": "AH",
        "a2": "AE",
        "A:": "AA",
        "A": "AA",
        "A#": "AA",
        "A@": "AA R",
        "AA": "AA",
        "E": "EH",
    },
    **{
        "E#": "EH",
        "E2": "EH",
        "e@": "EH R",
        "e": "EY",
        "e:": "EY",
        "I": "IH",
        "I2": "IH",
        "I#": "IH",
        "i": "IY",
    },
    **{"i:": "IY", "i@": "IH R", "i@3": "IH R", "0": "AA", "02": "AO", "0#": "AA", "O:": "AO", "O": "AO"},
    **{"O2": "AO", "O@": "AO R", "o@": "AO R", "o": "OW", "o:": "OW", "V": "AH", "V#": "AH", "U": "UH"},
    **{"u:": "UW", "u": "UW", "U@": "UH R", "VR": "AH R", "IR": "IH R", "aI": "AY", "aI@": "AY AH"},
    **{"aI3": "AY ER", "aU": "AW", "aU@": "AW ER", "eI": "EY", "OI": "OY", "oU": "OW", "y": "UW", "y:": "UW"},
    **{"W": "ER", "Y": "ER", "Y:": "ER", ";": "", "i2": "IY", "u2": "UW", "s#": "S", "U2": "UH", "_": ""},
}


def arpabet_of_mnemonics(mnemonics):
    """Phones of the CMU dictionary for espeak-ng's phoneme mnemonics.

    Arguments
    ---------
    mnemonics : sequence of str
        Of the voice ``en-us``, without stress marks (:func:`~speechbrain_emo.dataio.espeak.phone_label`).

    Returns
    -------
    list of str

    Raises
    ------
    AlignmentError
        If a mnemonic has no counterpart.

    Example
    -------
    >>> arpabet_of_mnemonics(["D", "e@", "r", "V", "n", "d", "3"])
    ['DH', 'EH', 'R', 'AH', 'N', 'D', 'ER']
    """
    phones = []
    for mnemonic in mnemonics:
        if mnemonic not in _ARPABET:
            raise AlignmentError(
                f"espeak-ng's phoneme {mnemonic!r} has no counterpart in the CMU dictionary's phones"
            )
        for phone in _ARPABET[mnemonic].split():
            # The CMU dictionary's ER and espeak-ng's "e@" hold the r that espeak-ng adds before a vowel.
            if not (phone == "R" and phones[-1:] and phones[-1] in ("R", "ER")):
                phones.append(phone)
    return phones


@functools.lru_cache(maxsize=4096)
def arpabet(word):
    """Pronunciation of an English word by espeak-ng's rules.

    Arguments
    ---------
    word : str
        Lower case.

    Returns
    -------
    str
        Phones of the CMU dictionary, separated by blanks, without stress.

    Raises
    ------
    AlignmentError
        If espeak-ng is missing, says nothing for the word, or uses a phoneme without a counterpart.

    Example
    -------
    >>> arpabet("thereunder")
    'DH EH R AH N D ER'
    """
    from speechbrain_emo.dataio.espeak import EspeakError, EspeakSynthesizer

    try:
        mnemonics = EspeakSynthesizer().mnemonics(word, voice="en-us")
    except EspeakError as error:
        raise AlignmentError(
            f"word {word!r} is in no dictionary, and espeak-ng cannot say it: {error}"
        ) from error
    phones = arpabet_of_mnemonics(mnemonics)
    if not phones:
        raise AlignmentError(f"word {word!r} is in no dictionary, and espeak-ng says nothing for it")
    return " ".join(phones)
