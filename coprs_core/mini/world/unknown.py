"""Words that the world does not know: what the miniature is to learn to say so about.

Nouns outside the table of kinds, one in four held back for the test; qualities that no object here
has; other languages; and no language at all.
"""

import random
import string
import zlib
from pathlib import Path

_WORD_LISTS = (Path(__file__).parent / "unknown.txt").read_text(encoding="utf-8")
NOUNS, QUALITIES = (tuple(part.split()) for part in _WORD_LISTS.split("\n\n"))
_FOREIGN_WORDS = """\
der die das den | hund katze fisch vogel haus baum auto blume himmel uhr stuhl | rote blaue kleine
le la les un une | chien chat poisson oiseau maison arbre voiture fleur ciel | rouge bleu vert petit
el la los un una | perro gato pez pájaro casa árbol coche flor cielo reloj | rojo azul verde pequeño
il la lo un una | cane gatto pesce uccello casa albero macchina fiore cielo | rosso blu verde grande
o a os um uma | cachorro gato peixe pássaro casa árvore carro flor céu | vermelho azul verde pequeno
de het een | hond kat vis vogel huis boom auto bloem lucht paraplu klok | rode blauwe groene kleine
""".splitlines()
"""Articles, nouns and qualities of German, French, Spanish, Italian, Portuguese and Dutch."""
_FOREIGN_PHRASES = (
    "红色的鱼 蓝色的鸟 房子 雨伞在哪里 钟 最大的东西 树 花 左边的车 月亮",
    "赤い魚 青い鳥 家 傘はどこ 時計 一番大きいもの 木 花 左の車 月",
    "빨간 물고기 파란 새 집 우산 시계 나무 꽃 자동차 달",
    "красная рыба синяя птица дом зонт часы дерево цветок машина луна",
    "κόκκινο ψάρι μπλε πουλί σπίτι ομπρέλα ρολόι δέντρο",
    "سمكة حمراء طائر أزرق بيت مظلة ساعة شجرة",
)
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
MAX_QUOTED = 40
"""So many characters of what is not known are repeated in a thought."""


def is_test_noun(noun: str) -> bool:
    """Whether a noun is kept for the test: one in four, by its letters alone."""
    return zlib.crc32(noun.encode()) % 4 == 0


def unknown_noun(rng: random.Random, is_test: bool) -> str:
    """A noun that the world has no picture of; those held back come up in the test alone."""
    while True:
        noun = rng.choice(NOUNS)
        if is_test_noun(noun) == is_test:
            return noun


def unknown_quality(rng: random.Random) -> str:
    return rng.choice(QUALITIES)


def foreign_words(rng: random.Random) -> str:
    """A few words of another language."""
    if rng.random() < 0.3:
        words = rng.choice(_FOREIGN_PHRASES).split()
        return " ".join(rng.sample(words, rng.randint(1, 2)))
    articles, nouns, qualities = (part.split() for part in rng.choice(_FOREIGN_WORDS).split("|"))
    phrase = [rng.choice(articles), rng.choice(nouns)]
    if rng.random() < 0.5:
        phrase.insert(rng.randint(1, 2), rng.choice(qualities))
    return " ".join(phrase)


def random_keystrokes(rng: random.Random) -> str:
    """Keys struck at random: neighbours on the keyboard, letters, syllables, digits."""
    return " ".join(_random_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3))))


def _random_word(rng: random.Random) -> str:
    kind, length = rng.random(), rng.randint(3, 8)
    if kind < 0.35:
        row = rng.choice(_KEYBOARD_ROWS)
        at = rng.randrange(len(row) - 3)
        return row[at : at + length]
    if kind < 0.6:
        return "".join(rng.choice(string.ascii_lowercase) for _ in range(length))
    if kind < 0.9:
        return "".join(rng.choice(_CONSONANTS) + rng.choice("aeiou") for _ in range(length // 2))
    return "".join(rng.choice(string.digits) for _ in range(length))
