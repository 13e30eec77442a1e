"""Captions made difficult for a tokenizer: what people type on phones, put into sentences at random places."""

from __future__ import annotations

import random

# A tilde within a piece stands for a space.
_TEXT = """
😀 ❤️ ❤ 👩‍👩‍👧 🏳️‍🌈 👍🏽 ☀️ ✨ ™ ® © ♥ ♡ ★ ♪ → ▶ ☺️ ✌🏼 • · ° ± × ÷ ≠ § ¡ ¿ ½ ¼ ⅓ ⅛ 1/2 3/4 1~1/2 5~3/4 2½ 1⁄2
11~1/2x € £5 $5.00 US$20 5€ ¢ 50¢ ¥100 $ NZ$5 50% % 3.14 .5 -5 +5 1e5 5x5 3D 4K 1st 22nd 1,000
1,000,000.50 10,5 #1 №1 5'10" 6'2 72° 5. 5, ,5 :5 5.5.5 -5-6 1,000-year 5-year-old 10:30 10:30am 5:45PM
12:00:05 7-9pm 1999-2000 2013-11-12 11/12/2013 12/25 24/7 650-723-0293 (650)~723-0293 (650)723-0293
+1-650-723-0293 +44~20~7946~0958 555-1234 650.723.0293 1-800-555-1212 100~200~300 12~345~678 12~345
"quoted" 'single' “curly” ‘curly’ «fr» ‹x› „de“ ''x'' ``x'' " ' ` “ ” ‘ ’ ´ ′ ″ ““x”” ‘‘‘ can't CAN'T
don’t don`t gonna Gonna wanna gotta gonna's cannot Cannot. 'tis ’twas y'all y’all rock'n'roll 'n' 'em
it's it’s I'm I’ve they'll O'Neil O’Brien d'Artagnan l'amour s'mores s’mores ma'am c'mon 'cause '90s
’80s '70 somethin' ol' boys' dogs' e'er shouldn't've I’mma it'sx it’sx d'x_y O_O'70 z'90sNo.
Guns~'n'~Roses n't 's Mr. Mrs. Dr. St. U.S. U.S.A. e.g. i.e. etc. etc.x Inc. Corp. vs. a.m. p.m. 5p.m.
5:30p.m. No.~5 no. no., Fig.~3 pp.~12 pp.12 Jan. Sept.~5 Ph.D. Ph.D Ph.D.x M.D. J. K. B.C. Co. Ltd. Jr.
Ave. Blvd. Calif. Mass. mass. MFG. a.k.a. R.I.P. D.C.'s U.S.-based x.y.z. plan~B.~The vitamin~C.~It
U.S.~A e.g.~The B.~Mr.~X I.~<b> é. ( ) [ ] { } (a) [b] {c} ((x)) -LRB- -lrb-x () [] <x> <b>bold</b>
<br/> <br~/> <a~href="x~y">link</a> <!--~c~--> </p> </b~c> <b~c=d> <3 </3 << >> <<< -> => <- <> &amp;
&AMP; &lt; &Gt; &quot; &Quot; &nbsp; &mdash; &#39; &hellip; &eacute; & AT&T R&D a&b A&amp;B C++ C#
http://t.co/AbC1 https://www.instagram.com/p/B6x_y/?hl=en http://x HTTP://xy.z, www.example.com
www.ex-ample.co.uk/a www.x example.com bit.ly/2x foo.org/bar. foo.org/b ♥b.com ex-ample.org/p/q
me@example.com <me@x.com> &lt;me@x me@example.com, a@b.c. ftp://x.y me@ file.txt 1.jpg 030.mov 1.jpgx
1-2.jpg a.b.c node.js v1.2.3 IMG_1234.jpg snake_case_x a__b _x a_ e-mail T-shirt well-known x-ray
self-made- -foo pre-1990 a-b-c co-op. co-op., a—b a–b a— x-y.z x-é a‐b -- --- ---- ----- - – — ― ‒ − a/b
and/or w/ w/o he/she/it n/a I/O a/b/c/d a-1/b \\/ \\* \\*\\* ** * *** ~~ ^ | || \\n / // ___ … ... ..
.... ..... ...... .~.~. .~.~.~. .~. ! !! !!! ? ?? ?! !? ?!?! ; : , ,, ;; :: café naïve Ñandú Zoë Σίσυφος
ΟΔΟΣ Москва Привет 東京 大阪へ 안녕하세요 العربية עברית हिन्दी ไทย ქართული Straße İstanbul ﬁ Å é ȷ ə ʻokina ｆｕｌｌ
１２ ， 。 、 「x」 x² H₂O ⁵ x⁻¹ 𝓱𝓮𝓵𝓵𝓸 𝟙 soft\xadhyphen \xad a\xad \xadcan't zero\u200bwidth a\u200db \ufeff
\u2060 a\xa0b \xa0 \xa0foo.org \u2003 \u3000 \t \x85 It\x85 \x93x\x94 \x92s #love #LoveIsLove #café #1a
#a1 #a_b #東京 # #a#b ## ＃x @me @some_one @1x @a.b @ @@ ＠y :-) :) :( ;) ;-) :D :P :p =) =D :'( :/ :-/ :|
:] :o) :O 8) ^_^ -_- (^_^) >_< o_o O_O T_T XD :3 (: >:( :)) :-))) :)5 :)a (^.^) ^.^
"""
_SIGNS = "abcABC0123456789.,;:!?'\"`-_/\\()[]{}<>&@#$%^*+=~|  ’‘“”—–…\xad\xa0éüßжאا東한❤\ufe0f\u200d😀½€£"

PIECES = [piece.replace("~", " ") for line in _TEXT.strip("\n").split("\n") for piece in line.split(" ")]


def mutated(caption: str, rng: random.Random) -> str:
    """Return the caption with one to four random changes, mostly an inserted piece with or without spaces."""
    for _ in range(rng.randint(1, 4)):
        caption = rng.choices((_with_piece, _with_signs, _with_other_characters), (6, 2, 2))[0](caption, rng)
    return caption


def random_pieces(rng: random.Random) -> str:
    """Return random pieces and signs, mostly without spaces between them."""
    return "".join(
        rng.choice(PIECES if rng.random() < 0.7 else _SIGNS) + rng.choice(("", " ", ""))
        for _ in range(rng.randint(1, 7))
    )


def _with_piece(caption: str, rng: random.Random) -> str:
    piece = rng.choice(PIECES)
    if rng.random() < 0.6:
        piece = f" {piece} "
    elif rng.random() < 0.5:
        piece = f"{rng.choice(('', ' '))}{piece}{rng.choice('.,!?;:)…')}{rng.choice(('', ' '))}"
    places = [i for i, character in enumerate(caption) if character == " "] or [0]
    place = rng.choice(places) if rng.random() < 0.7 else rng.randint(0, len(caption))
    return caption[:place] + piece + caption[place:]


def _with_signs(caption: str, rng: random.Random) -> str:
    place = rng.randint(0, len(caption))
    signs = rng.choice(_SIGNS) if rng.random() < 0.7 else rng.choice(".!?,-*_#@ …'\"") * rng.randint(2, 8)
    return caption[:place] + signs + caption[place + rng.randint(0, 1) :]


def _with_other_characters(caption: str, rng: random.Random) -> str:
    changes = (
        str.upper,
        str.title,
        str.lower,
        lambda text: text.replace("'", rng.choice("’‘`")).replace('"', rng.choice("“”")),
        lambda text: text.replace(" ", rng.choice(("  ", "\xa0", "-", ".", "_", "/")), rng.randint(1, 3)),
    )
    return rng.choice(changes)(caption)
