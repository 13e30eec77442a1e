from __future__ import annotations

import re
import unicodedata
from typing import Any

import emoji
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.params import load
from pipeline.config.sections.build import Captions
from pipeline.data.text import caption_cleaner, caption_words, clean, emoji_name, tag_words
from tests.conftest import ROOT

KEEP = Captions(
    repair=False, emoji="keep", hashtags="keep", mentions="keep", web_addresses="keep", min_words=1, max_words=100
)


def cleaned(text: str, **rules: Any) -> str:
    return caption_cleaner(KEEP.model_copy(update=rules))(text)


@pytest.mark.parametrize(
    ("rule", "value", "before", "after"),
    [
        ("repair", True, "cafÃ© &amp; ﬁne", "café & fine"),
        ("repair", True, "fünf Mäuse", "fünf Mäuse"),
        ("repair", False, "cafÃ©", "cafÃ©"),
        ("emoji", "keep", "so good🔥🔥 love❤️you", "so good 🔥 🔥 love ❤️ you"),
        ("emoji", "words", "so good🔥🔥 🔥x", "so good fire x"),
        ("emoji", "words", "yes👍🏽👍 no", "yes thumbs up no"),
        ("emoji", "words", "1️⃣ 🇮🇳 ❤", "keycap 1 India red heart"),
        ("emoji", "drop", "so good🔥🔥!", "so good !"),
        ("emoji", "drop", "👨‍👩‍👧", ""),
        ("hashtags", "keep", "#NoFilter", "#NoFilter"),
        ("hashtags", "words", "#NoFilter#photo_of_the_day", "No Filter photo of the day"),
        ("hashtags", "words", "the #1 of #goldenretriever", "the #1 of golden retriever"),
        ("hashtags", "drop", "day #one#two end", "day end"),
        ("mentions", "drop", "with @ann.lee! ann@lee.org", "with ! ann@lee.org"),
        ("mentions", "replace", "by @a_b and @c", "by someone and someone"),
        ("web_addresses", "drop", "at https://x.org/y?a=1. ok", "at . ok"),
        ("web_addresses", "replace", "(www.x.org)", "( website )"),
    ],
)
def test_each_rule_matches_its_example(rule: str, value: Any, before: str, after: str) -> None:
    assert cleaned(before, **{rule: value}) == after


def test_the_examples_in_params_yaml_are_correct() -> None:
    text = (ROOT / "params.yaml").read_text()
    section = text[text.index("  captions:\n") : text.index("min_words")]
    checked = 0
    for comment, rule in re.findall(r"((?:    #.*\n)+)    (\w+):", section):
        values = [True] if rule == "repair" else ["keep", "words", "drop", "replace"]
        for before, after in re.findall(r'"([^"]+)" -> "([^"]*)"', re.sub(r"\n\s*#", "", comment)):
            assert after in {cleaned(before, **{rule: value}) for value in values}
            checked += 1
    assert checked >= 7


def test_joined_words_are_split_only_if_they_are_clearly_words() -> None:
    for tag in ("mumbai", "tbt", "ootd", "schönerhund", "NYC", "delhi", "x"):
        assert tag_words(tag) == tag
    assert tag_words("throwbackThursday2024") == "throwback Thursday 2024"
    assert tag_words("throwbackthursday") == "throwback thursday"


def test_every_emoji_has_a_name_in_words() -> None:
    for symbol in emoji.EMOJI_DATA:
        name = emoji_name(symbol)
        assert not emoji.emoji_count(name)
        assert name == clean(name)


def test_scripts_that_use_joiners_keep_them() -> None:
    for text in ("ශ්\u200dරී ලංකා 🔥", "می\u200cخواهم", "മലയാളം ക്\u200d"):
        assert cleaned(text, emoji="drop") == clean(text.replace("🔥", "")) or text.endswith("\u200d")


def test_words_have_a_letter_or_digit_or_are_emoji() -> None:
    assert caption_words("so good ! 🔥 - 7 ...") == ["so", "good", "🔥", "7"]


def test_each_character_is_a_word_in_scripts_without_spaces() -> None:
    assert caption_words("一只狗 Max 在跑。") == ["一", "只", "狗", "Max", "在", "跑"]
    assert caption_words("コーヒー") == list("コーヒー")
    assert len(caption_words("หมาวิ่ง")) == 5  # with their vowel and tone marks
    assert caption_words("개가 달린다") == ["개가", "달린다"]


anything = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(list("#@_.ab AZ09\u200d\ufe0f🔥👍🏽❤🇮🇳\r\n\t\u2028&;é")),
    ),
    max_size=60,
)
policies = st.builds(
    Captions,
    repair=st.booleans(),
    emoji=st.sampled_from(["keep", "words", "drop"]),
    hashtags=st.sampled_from(["keep", "words", "drop"]),
    mentions=st.sampled_from(["keep", "replace", "drop"]),
    web_addresses=st.sampled_from(["keep", "replace", "drop"]),
    min_words=st.just(1),
    max_words=st.just(100),
)


@given(anything, policies)
def test_a_cleaned_caption_is_one_line_without_what_the_policy_drops(text: str, policy: Captions) -> None:
    result = caption_cleaner(policy)(text)
    assert result == clean(result)
    assert unicodedata.is_normalized("NFC", result)
    assert not re.search(r"[\r\n\t\u2028]|  ", result)
    if policy.emoji == "drop":
        assert {found["emoji"] for found in emoji.emoji_list(result)} <= set("©®™")
    if policy.hashtags == "drop" and policy.emoji != "words":
        assert not re.search(r"#[a-z]", result)
    if policy.emoji == "keep":
        for found in emoji.emoji_list(result):
            if found["emoji"] in "©®™":
                continue
            before, after = result[: found["match_start"]], result[found["match_end"] :]
            assert before in ("", clean(before) + " ")
            assert after in ("", " " + clean(after))


def test_the_default_policy_is_valid() -> None:
    assert load(ROOT / "params.yaml").build.captions.min_words == 1
