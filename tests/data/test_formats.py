"""Public data sets by name: invented rows in each set's true layout, and the files of `data_dir` themselves."""

import hashlib
import json
import re
import sys
import types
from dataclasses import replace
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from web_pages import web_pages

from content_arena.core.config import load_settings
from content_arena.data import readers
from content_arena.data.categories import CATEGORIES, SEVERITIES, CategoryMap, SeverityMap
from content_arena.data.formats import FORMATS, check_licences, describe_formats, looks_like
from content_arena.data.public_files import PublicFile, find_public_file
from content_arena.data.raw_files import DataError
from content_arena.data.readers import load_source, load_unlabelled
from content_arena.training.data_preparation import prepare_dataset


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    (tmp_path / "settings.ini").write_text("[paths]\nvar_dir = var\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def at(home, **explicit):
    return load_settings(ini=home / "settings.ini", env={}, **explicit)


def said(frame: pd.DataFrame) -> list[tuple]:
    "Of each row: label, categories, severity."
    severity = [None if pd.isna(s) else int(s) for s in frame.severity]
    categories = [None if c is None else list(c) for c in frame.categories]
    return list(zip(frame.label.tolist(), categories, severity))


# Invented rows in the true layout of each set ----------------------------------------------------


def table(rows: list[tuple], separator: str = ",") -> str:
    quoted = [[f'"{c}"' if separator in str(c) else str(c) for c in row] for row in rows]
    return "".join(separator.join(row) + "\n" for row in quoted)


UNSMILE_HEAD = "문장\t여성/가족\t남성\t성소수자\t인종/국적\t연령\t지역\t종교\t기타 혐오\t악플/욕설\tclean\t개인지칭"
KOLD_ROWS = [
    {"guid": "k0", "title": "제목", "comment": "좋아요", "OFF": False, "TGT": None, "GRP": None},
    {
        "guid": "k1",
        "title": "다른 제목",
        "comment": "그 집단은 싫다",
        "OFF": True,
        "TGT": "group",
        "GRP": "gender-LGBTQ+ & race-chinese",
    },
    {
        "guid": "k2",
        "title": "셋째",
        "comment": "저 사람 바보다",
        "OFF": True,
        "TGT": "individual",
        "GRP": None,
    },
]
JIGSAW_HEAD = ("id", "comment_text", "toxic", "severe_toxic", "obscene", "threat", "insult")
CIVIL_HEAD = ("text", "toxicity", "severe_toxicity", "obscene", "threat", "insult")

#: format -> text of a file, and label, categories, severity of each of its rows
INVENTED = {
    "beep": (
        "comments\tcontain_gender_bias\tbias\thate\n"
        '"재밌다\tFalse\tnone\tnone\n그저 그렇다\tFalse\tothers\toffensive\n저리 가라\tTrue\tgender\thate\n',
        [(0, [], 0), (1, ["other"], 1), (1, ["gender"], 2)],
    ),
    "curse": ("좋다|0\r\n이런 | 저런 바보|1\r\n", [(0, None, None), (1, None, None)]),
    "apeach": (
        "text,user_age,user_gender,text_topic,class,age,text_topic_eng\n"
        "좋은 날이다,30,male,주제,Default,30,Diets\n"
        "저 얼굴 봐라,30,male,주제,Spoiled,30,Appearance\n"
        "그 나라 사람은 싫다,30,male,주제,Spoiled,30,Nationality\n",
        [(0, [], None), (1, ["appearance"], None), (1, ["race"], None)],
    ),
    "davidson": (
        ",count,hate_speech,offensive_language,neither,class,tweet\n"
        '0,3,0,0,3,2,"a fine, sunny day"\n1,3,0,3,0,1,what a fool\n2,3,3,0,0,0,go away all of you\n',
        [(0, None, 0), (1, None, 1), (1, None, 2)],
    ),
    "kodoli": (
        "index,sentences,abuse,sentiment,offensiveness\n"
        "0,고맙다,NON,POS,NOT\n1,글쎄다,NON,NEU,LIKELY\n2,꺼져라,ABS,NEG,OFFEN\n",
        [(0, None, 0), (1, None, 1), (1, None, 2)],
    ),
    "kmhas": (
        "document\tlabel\n반갑다\t8\n늙은 것들\t4\n정치도 욕도\t2,3\n고향 탓\t0\n",
        [
            (0, [], None),
            (1, ["age"], None),
            (1, ["politics", "profanity"], None),
            (1, ["origin"], None),
        ],
    ),
    "unsmile": (
        UNSMILE_HEAD + "\n고맙다\t0\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\n"
        "여자도 남자도 싫다\t1\t1\t0\t0\t0\t0\t0\t0\t0\t0\t0\n"
        "그 동네 그 나라\t0\t0\t0\t1\t0\t1\t0\t0\t0\t0\t0\n욕이다\t0\t0\t0\t0\t0\t0\t0\t0\t1\t0\t1\n",
        [
            (0, [], None),
            (1, ["gender"], None),
            (1, ["origin", "race"], None),
            (1, ["insult"], None),
        ],
    ),
    "kold": (
        json.dumps(KOLD_ROWS, ensure_ascii=False),
        [(0, [], None), (1, ["race", "sexuality"], None), (1, [], None)],
    ),
    "hatecheck": (
        ",functionality,case_id,test_case,label_gold,target_ident,direction\n"
        "0,ident_neutral_nh,1,I am a woman.,non-hateful,women,\n"
        "1,threat_dir_h,2,I will hurt them.,hateful,Muslims,general\n"
        "2,slur_h,3,You are all alike.,hateful,trans people,directed\n"
        "3,counter_quote_nh,4,Nobody should say so.,non-hateful,,\n",
        [(0, [], 0), (1, ["religion", "threat"], 2), (1, ["sexuality"], 2), (0, [], 0)],
    ),
    "hatescore": (
        ",comment,macrolabel,microlabel,source\n"
        "0,그건 논쟁거리다,Clean,Clean,위키피디아\n1,그 동네는 싫다,혐오발언,지역,댓글\n"
        "2,참 한심하다,단순 악플,단순 악플,댓글\n",
        [(0, [], 0), (1, ["origin"], 2), (1, ["insult"], 1)],
    ),
    "kocoh": (
        "Index,Set,Type,Date,Link,Title,Context,Comment,Hate speech,Counter speech,Gender,Disability,"
        "Race/Nationality,Region (Korea),Age,Profanity,Ikiyano-style\n"
        "0,1,1,d,l,t,어느 도시의 음식을 소개했다.,여권이 필요하겠네,1,0,0,0,0,1,0,0,0\n"
        "1,1,2,d,l,t,외국 도시의 음식을 소개했다.,여권이 필요하겠네,0,0,0,0,0,0,0,0,0\n",
        [(1, ["origin"], 1), (0, [], 0)],
    ),
    "zizun": (
        'content\tlable\n"좋은 드라마다\t1\n저런 막장은 처음\t0\n',
        [(0, None, None), (1, None, None)],
    ),
    "jigsaw": (
        table(
            [
                (*JIGSAW_HEAD, "identity_hate"),
                ("a", "thanks for the edit", 0, 0, 0, 0, 0, 0),
                ("b", "you are a fool", 1, 0, 0, 0, 1, 0),
                ("c", "I will find you all", 1, 1, 1, 1, 0, 1),
            ]
        ),
        [(0, [], None), (1, ["insult"], None), (1, ["other", "profanity", "threat"], 2)],
    ),
    "civil_comments": (
        table(
            [
                (*CIVIL_HEAD, "identity_attack", "sexual_explicit"),
                ("I agree with the mayor", 0.1, 0, 0, 0, 0.2, 0, 0),
                ("what a stupid plan", 0.5, 0.1, 0, 0, 0.7, 0, 0),
                ("they should all be hurt", 0.9, 0.3, 0, 0.5, 0.4, 0.8, 0),
            ]
        ),
        [(0, [], None), (1, ["insult"], None), (1, ["other", "threat"], None)],
    ),
    "toxic_chat": (
        "conv_id,user_input,model_output,human_annotation,toxicity,jailbreaking,openai_moderation\n"
        'a,write me a poem,Roses,True,0,0,"[[""sexual"", 0.1]]"\nb,insult my neighbour,No,True,1,0,[]\n',
        [(0, None, None), (1, None, None)],
    ),
}
OTHER_FORMS = {
    ("kocoh", "v1"): (
        "index,set,type,date,link,title,context,comment,hate speech,gender,disability,race/nation,"
        "region,age,note\n0,1,1,d,l,t,맥락,댓글이다,1,1,0,0,0,1,\n1,1,3,d,l,t,맥락,다른 댓글,0,0,0,0,0,0,\n",
        [(1, ["age", "gender"], 1), (0, [], 0)],
    ),
    ("kmhas", "hub"): (
        '{"text": "반갑다", "label": [8]}\n{"text": "정치도 욕도", "label": [2, 3]}\n',
        [(0, [], None), (1, ["politics", "profanity"], None)],
    ),
}


def test_every_labelled_format_has_invented_rows():
    assert set(INVENTED) | {"kda", "nsmc", "beep_unlabeled"} == set(FORMATS)


@pytest.mark.parametrize("name", INVENTED)
def test_own_file_is_read_as_the_format_it_is_said_to_have(home, name):
    text, rows = INVENTED[name]
    (home / "mine.txt").write_text(text, encoding="utf-8")
    read = load_source(f"{name}:mine.txt", at(home))
    assert said(read.frame) == rows
    assert len(read.bad) == 0 and set(read.frame.source) == {f"{name}:mine.txt"}
    assert set(read.frame.lang) == {FORMATS[name].lang} and set(read.frame.file) == {"mine.txt"}
    assert read.licence == FORMATS[name].licence


@pytest.mark.parametrize("name, form", OTHER_FORMS)
def test_other_forms_of_a_format_are_read_by_their_columns(home, name, form):
    text, rows = OTHER_FORMS[name, form]
    (home / "mine.txt").write_text(text, encoding="utf-8")
    assert said(load_source(f"{name}:mine.txt", at(home)).frame) == rows


def test_context_comes_along_where_a_format_has_it(home):
    for name, contexts in (
        ("kold", ["제목", "다른 제목", "셋째"]),
        ("kocoh", ["어느 도시의 음식을 소개했다.", "외국 도시의 음식을 소개했다."]),
    ):
        (home / "mine.txt").write_text(INVENTED[name][0], encoding="utf-8")
        assert load_source(f"{name}:mine.txt", at(home)).frame.context.tolist() == contexts
    (home / "mine.txt").write_text(INVENTED["beep"][0], encoding="utf-8")
    assert load_source("beep:mine.txt", at(home)).frame.context.isna().all()


def test_columns_of_a_format_without_public_description_are_for_its_owner_to_name(home):
    (home / "mine.csv").write_text("문장,유해\n좋다,0\n나쁘다,1\n", encoding="utf-8")
    read = load_source("kda:mine.csv?text=문장&label=유해", at(home))
    assert read.frame.label.tolist() == [0, 1] and set(read.frame.lang) == {"ko"}
    with pytest.raises(DataError, match=r"kda.*kda:PATH"):
        load_source("kda", at(home))


@pytest.mark.parametrize(
    "setting, name, labels",
    [("beep_offensive", "beep", [0, 0, 1]), ("kodoli_likely", "kodoli", [0, 0, 1])],
)
def test_label_policy_is_a_setting(home, setting, name, labels):
    (home / "mine.txt").write_text(INVENTED[name][0], encoding="utf-8")
    source = f"{name}:mine.txt"
    strict = at(home, **{setting: "clean"})
    assert load_source(source, strict).frame.label.tolist() == labels
    assert load_source(source, at(home)).frame.severity.tolist() == [0, 1, 2]
    assert readers.source_digest(source, strict) != readers.source_digest(source, at(home))
    (home / "mine.txt").write_text(INVENTED["curse"][0], encoding="utf-8")
    other = "curse:mine.txt"
    assert readers.source_digest(other, strict) == readers.source_digest(other, at(home))


def test_value_that_a_recipe_does_not_know_is_named_with_its_line(home):
    text = INVENTED["beep"][0] + "넷째 줄\tFalse\tnone\tunsure\n"
    (home / "mine.tsv").write_text(text, encoding="utf-8")
    read = load_source("beep:mine.tsv", at(home))
    assert len(read.frame) == 3 and read.bad.line.tolist() == [5]
    assert "unsure" in read.bad.reason[0]


# By name: data_dir, downloads, hashes, splits -----------------------------------------------------


@pytest.fixture
def mirror():
    with web_pages() as served:
        yield served


@pytest.fixture
def published(mirror, monkeypatch):
    "Publishes the invented rows of a format under its name; returns the mirror's address."
    url, pages = mirror

    def publish(name: str, split: str = "all", sha256: str | None = None, text: str = "") -> str:
        body = (text or INVENTED[name][0]).encode()
        pages[f"/{name}/{split}"] = body
        sha256 = hashlib.sha256(body).hexdigest() if sha256 == "" else sha256
        file = PublicFile(f"{name}_{split}.txt", f"{name}/{split}", sha256)
        splits = dict(FORMATS[name].splits) if FORMATS[name].default else {}
        fmt = replace(FORMATS[name], splits=splits | {split: (file,)})
        monkeypatch.setitem(FORMATS, name, fmt)
        return url

    return publish


@pytest.mark.parametrize("name", INVENTED)
def test_format_by_name_is_downloaded_and_read(home, published, name):
    split = FORMATS[name].default[0] if FORMATS[name].default else "all"
    url = published(name, split, sha256="")
    read = load_source(name, at(home), base_url=url)
    assert said(read.frame) == INVENTED[name][1]
    assert set(read.frame.source) == {name} and read.licence == FORMATS[name].licence
    assert set(read.frame.file) == {f"{name}_{split}.txt"}


def test_hash_that_nobody_published_is_recorded_and_compared(home, mirror):
    url, pages = mirror
    pages["/owner/a.csv"] = b"text,label\nfine,0\n"
    file = PublicFile("a.csv", "owner/a.csv")
    path = find_public_file(file, at(home), url)
    recorded = json.loads((home / "var/sources/hashes.json").read_text())
    assert recorded["a.csv"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    pages["/owner/a.csv"] = b"text,label\nfine,1\n"
    with pytest.raises(DataError, match=r"a.csv: refused.*first used.*hashes.json"):
        find_public_file(file, at(home), url)
    assert not path.exists(), "what is refused leaves nothing"
    (home / "var/sources/hashes.json").write_text("[]")
    with pytest.raises(DataError, match="hashes.json: no table of hashes"):
        find_public_file(file, at(home), url)


def test_file_in_data_dir_of_a_set_without_hash_is_recorded_too(home, published):
    published("zizun")
    settings = at(home, data_dir=str(home))
    (home / "zizun_all.txt").write_text(INVENTED["zizun"][0], encoding="utf-8")
    first = readers.source_digest("zizun", settings)
    assert said(load_source("zizun", settings).frame) == INVENTED["zizun"][1]
    (home / "zizun_all.txt").write_text(INVENTED["zizun"][0] + "더\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match="zizun_all.txt: refused"):
        load_source("zizun", settings)
    (home / "var/sources/hashes.json").unlink()
    assert readers.source_digest("zizun", settings) != first


def test_split_is_chosen_by_name(home, published):
    more = "document\tlabel\n딴 글\t8\n"
    published("kmhas", "train", text=more)
    url = published("kmhas", "valid")
    assert len(load_source("kmhas", at(home), base_url=url).frame) == 4
    assert len(load_source("kmhas?split=train", at(home), base_url=url).frame) == 1
    both = load_source("kmhas?split=train,valid", at(home), base_url=url).frame
    assert both.file.value_counts().to_dict() == {"kmhas_valid.txt": 4, "kmhas_train.txt": 1}
    with pytest.raises(DataError, match="no split dev; accepted: train, valid, test"):
        load_source("kmhas?split=dev", at(home), base_url=url)


def test_file_behind_a_login_says_where_to_get_it(home):
    with pytest.raises(DataError, match=r"jigsaw_train.csv: .*by hand from https://www.kaggle.com"):
        load_source("jigsaw", at(home))


def test_name_that_is_nearly_a_format_says_which(home):
    with pytest.raises(DataError, match=r"'kmhass?' is unknown; did you mean kmhas\?; accepted"):
        load_source("kmhass", at(home))


class HubTable(dict):
    "What `datasets.load_dataset` gives."

    info = types.SimpleNamespace(license="")

    @property
    def column_names(self):
        return list(self)


def test_format_is_read_from_the_hub_by_its_id_there(home, monkeypatch):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "google/civil_comments":
            rows = {"text": ["fine", "fool"], "toxicity": [0.1, 0.8]}
            return HubTable(rows | {c: [0.0, 0.6] for c in ("obscene", "threat", "insult")})
        if name == "jeanlee/kmhas_korean_hate_speech":
            return HubTable(text=["반갑다", "정치도 욕도"], label=[[8], [2, 3]])
        return HubTable(text=["a"], label=["b"])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    read = load_source("civil_comments", at(home))
    assert said(read.frame) == [(0, [], None), (1, ["insult", "profanity", "threat"], None)]
    assert read.licence == "CC0" and set(read.frame.source) == {"civil_comments"}
    read = load_source("kmhas:hub", at(home))
    assert said(read.frame) == [(0, [], None), (1, ["politics", "profanity"], None)]
    load_source("kmhas:hub?split=train,test", at(home))
    kmhas = "jeanlee/kmhas_korean_hate_speech"
    assert asked == [
        ("google/civil_comments", "train"),
        (kmhas, "validation"),
        (kmhas, "train"),
        (kmhas, "test"),
    ]
    with pytest.raises(DataError, match="beep:hub: BEEP! is not on the hub"):
        load_source("beep:hub", at(home))
    with pytest.raises(DataError, match="this is Korean UnSmile: use unsmile:hub"):
        load_source("hub:smilegate-ai/kor_unsmile", at(home, hub_label_column="hate"))


NAMES = "Ann Bob Cid Dan Eve Fay Gil Hal Ida Joe Kim Lee".split()
THINGS = "soup song dance hat joke plan idea garden letter speech".split()


def many_rows(home: Path, name: str) -> str:
    "Two hundred rows in the layout of `name`, made from its invented ones."
    text, rows = INVENTED[name]
    (home / "few.txt").write_text(text, encoding="utf-8")
    few = load_source(f"{name}:few.txt", at(home)).frame
    patterns = {k: few[few.label == k].iloc[0] for k in (0, 1)}
    sentences = {
        0: [f"{n} made a lovely {t} today" for n in NAMES for t in THINGS][:100],
        1: [f"{n} the fool wants a {t}" for n in NAMES for t in THINGS][:100],
    }
    if name == "kold":
        chosen = {k: KOLD_ROWS[few.text.tolist().index(p.text)] for k, p in patterns.items()}
        made = [chosen[k] | {"comment": s} for k in (0, 1) for s in sentences[k]]
        return json.dumps(made, ensure_ascii=False)
    lines = text.splitlines(keepends=True)
    head = lines[:1] if name != "curse" else []
    made = [
        lines[patterns[k].line - 1].replace(patterns[k].text, s)
        for k in (0, 1)
        for s in sentences[k]
    ]
    return "".join(head + made)


QUICK = ("kmhas", "kold", "civil_comments")  # a list, JSON, scores


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in INVENTED]
)
def test_data_set_is_prepared_from_each_format(home, name):
    (home / "mine.txt").write_text(many_rows(home, name), encoding="utf-8")
    settings = at(home, sources=f"{name}:mine.txt", allow_restricted_licences=name)
    made = prepare_dataset(settings, progress=False)
    account = dict(made.manifest["rows"])
    assert account.pop("read") == sum(account.values()) == 200
    rows = pd.concat(made.frame(split) for split in ("train", "valid", "test"))
    assert set(rows.label) == {0, 1} and len(rows) > 150
    knows = {c for _, names, _ in INVENTED[name][1] for c in [names is not None]} == {True}
    assert rows.categories.notna().all() == knows
    assert made.manifest["licences"] == {f"{name}:mine.txt": FORMATS[name].licence}


# Recognition --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in INVENTED if n != "curse"])  # which has no header
def test_plain_file_of_a_known_format_is_named(home, name):
    (home / "mine.txt").write_text(INVENTED[name][0], encoding="utf-8")
    with pytest.raises(
        DataError, match=f"This looks like {FORMATS[name].title}.*use {name}:mine.txt"
    ):
        load_source("file:mine.txt", at(home))


def test_renamed_kmhas_is_refused_with_its_label_counts_and_a_hint(home):
    rows = [("8", 60), ("0", 12), ("1", 10), ("2,3", 9), ("5", 4)]
    lines = [f"글 {label} {i}\t{label}" for label, n in rows for i in range(n)]
    (home / "mine.csv").write_text("text\tlabel\n" + "\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_source("csv:mine.csv", at(home))
    message = str(error.value)
    assert "use kmhas:mine.csv" in message
    for label, n in rows:
        assert re.search(rf"{label}'?\D{{1,4}}{n}\b", message), (label, n, message)


@pytest.mark.parametrize("name", ["kmhas", "kodoli", "beep", "hatecheck"])
def test_what_the_hint_says_is_what_helps(home, name):
    "Whoever has renamed the columns gets a name that reads the file whole, categories and all."
    text, rows = INVENTED[name]
    spec = FORMATS[name].layouts[0]
    head, rest = text.split("\n", 1)
    for columns in (("text", "label"), ("말", "분류")):
        renamed = head.replace(spec.text[0], columns[0]).replace(spec.label[0], columns[1])
        (home / "mine.txt").write_text(f"{renamed}\n{rest}" + rest * 4, encoding="utf-8")
        with pytest.raises(DataError) as error:
            load_source("file:mine.txt", at(home))
        (said_name,) = re.findall(rf"use ({name}:mine.txt\S*)", str(error.value))
        assert said(load_source(said_name, at(home)).frame) == rows * 5, said_name


@pytest.mark.parametrize(
    "columns, cells",
    [
        (("text", "label"), {"label": ["0", "1"]}),
        (("text", "label"), {"label": ["0", "1", "2"]}),
        (("text", "label"), {"label": ["정상", "혐오"]}),
        (("comment", "rating"), {"rating": [str(n) for n in range(1, 6)]}),
        (("id", "comment", "label"), {"label": ["0", "1"]}),
        (("text", "label"), {"label": ["none", "hate"]}),
        ((), {}),
    ],
)
def test_ordinary_file_looks_like_no_format(columns, cells):
    assert looks_like(columns, cells) is None


@pytest.mark.parametrize(
    "text, columns",
    [
        ("좋은 날이다 정말|0\n" + "이런 바보가 다 있나|1\n아니다|0\n" * 5, "text,label"),
        ("정말로 좋은 날이다 오늘은\n" + "이런 바보가 다 있나 싶다\n" * 5, "text"),
    ],
)
def test_first_comment_is_not_shown_as_a_header(home, text, columns):
    (home / "mine.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as error:
        load_source("file:mine.txt", at(home))
    assert f"file:mine.txt?columns={columns}" in str(error.value)
    assert "날이다" not in str(error.value)


def test_film_ratings_are_not_taken_for_labels(home):
    rows = "".join(f"{i}\t영화평 {i}\t{i % 2}\n" for i in range(9))
    (home / "ratings.txt").write_text("id\tdocument\tlabel\n" + rows, encoding="utf-8")
    with pytest.raises(DataError, match="looks like NSMC.*use nsmc:ratings.txt.*unlabelled"):
        load_source("file:ratings.txt", at(home))
    for name in ("nsmc:ratings.txt", "nsmc?split=train"):
        (home / "ratings_train.txt").write_text("id\tdocument\tlabel\n" + rows, encoding="utf-8")
        read = load_unlabelled(name, at(home, data_dir=str(home)))
        assert read.frame.text.tolist() == [f"영화평 {i}" for i in range(9)]


@pytest.mark.parametrize("name", ["kmhas", "unsmile", "beep"])
def test_format_is_known_in_a_copy_saved_by_a_spreadsheet(home, name):
    rows = [line.split("\t") for line in INVENTED[name][0].splitlines()]
    (home / "copy.csv").write_text(table(rows), encoding="cp949")
    read = load_source(f"{name}:copy.csv", at(home))
    assert said(read.frame) == INVENTED[name][1] and any("cp949" in s for s in read.assumed)


# The vocabulary, the table, the licences ----------------------------------------------------------


def test_recipes_use_the_vocabulary():
    for fmt in FORMATS.values():
        for spec in fmt.layouts:
            CategoryMap(spec.categories, spec.category_separator, fmt.name)
            if spec.severity:
                SeverityMap(spec.severity, spec.severities, fmt.name)
            assert set((spec.labels or {}).values()) <= {0, 1}
        assert all(hasattr(load_settings(env={}), key) for key in fmt.policies.values())
        assert set(fmt.default) <= set(fmt.splits) and fmt.licence and fmt.verified
    assert len(CATEGORIES) == 13 and list(SEVERITIES) == [0, 1, 2]


def test_no_hash_is_known_for_what_was_never_here():
    "A sha256 is either that of a file in data_dir, or one that its publisher states."
    stated = {"kold_v1.json"}  # in its Git LFS pointer
    files = [f for fmt in FORMATS.values() for part in fmt.splits.values() for f in part]
    known = {f.name for f in files if f.sha256} - stated
    tested = {
        "beep_train.tsv",
        "beep_dev.tsv",
        "beep_unlabeled.txt",
        "curse.txt",
        "apeach_test.csv",
    }
    assert known == tested | {
        "davidson.csv",
        "kodoli.csv",
        "kmhas_valid.txt",
        "nsmc_unlabeled.parquet",
    }
    assert len({f.name for f in files}) == len(files), "two sets would share a file in data_dir"


@pytest.mark.parametrize("name", ["unsmile", "kold", "hatescore", "kocoh", "toxic_chat", "kda"])
def test_restricted_licence_is_tested_on_but_not_trained_on_unasked(home, name):
    for key in ("sources", "train_sources"):
        with pytest.raises(DataError, match=f"not trained on.*allow_restricted_licences = {name}"):
            check_licences(at(home, **{key: f"{name}:mine.txt"}))
    (note,) = check_licences(at(home, test_sources=f"{name}:mine.txt"))
    assert note.startswith(name)
    allowed = at(home, sources=f"embedded,{name}", allow_restricted_licences=name)
    assert len(check_licences(allowed)) == 1


def test_preparing_refuses_a_restricted_set_and_notes_what_its_licence_limits(home):
    (home / "mine.txt").write_text(many_rows(home, "unsmile"), encoding="utf-8")
    with pytest.raises(DataError, match="allow_restricted_licences = unsmile"):
        prepare_dataset(at(home, sources="unsmile:mine.txt"), progress=False)
    allowed = at(home, sources="unsmile:mine.txt", allow_restricted_licences="unsmile")
    notes = prepare_dataset(allowed, progress=False).manifest["notes"]
    assert any("no commercial use" in n and "no adapted versions" in n for n in notes)


def test_licence_is_seen_behind_other_names_too(home):
    (home / "sources.toml").write_text('[ours]\npath = "a.tsv"\nformat = "unsmile"\n')
    for name in ("ours", "ours?lang=ko", "hub:smilegate-ai/kor_unsmile:valid", "unsmile:hub"):
        with pytest.raises(DataError, match="Korean UnSmile .*is not trained on"):
            check_licences(at(home, sources=name))
    assert check_licences(at(home, sources="hub:owner/unsmile,file:unsmile.tsv")) == []


def test_free_licences_need_no_permission(home):
    free = {f.name for f in FORMATS.values() if not f.restrictions}
    assert check_licences(at(home, sources=",".join(sorted(free)))) == []
    assert {"beep", "kmhas", "davidson", "hatecheck", "jigsaw"} <= free


def test_table_of_formats_is_complete():
    rows = {row["name"]: row for row in describe_formats()}
    assert set(rows) == set(FORMATS)
    for name, row in rows.items():
        assert row["licence"] and row["verified"]
        assert bool(row["page"]) == (name != "kda")  # nobody describes it in public
    assert rows["kmhas"]["categories"] == sorted({*rows["kmhas"]["categories"]})
    json.dumps(rows)
    with pytest.raises(DataError, match="did you mean kmhas"):
        describe_formats("kmhass")


# The files themselves -----------------------------------------------------------------------------

#: rows, toxic, sha256 of (text, label, file, line, lang) as read before there were recipes
BEFORE = {
    "beep": (8367, 4721, "9bc54e39606ba892d575e2d8fee4bf064da4ef25f64b4c7104a37cf46211d84d"),
    "curse": (5825, 2044, "b95cb63d8291fc6ac6781acc65981732035d5ac54911c287938fab7f7ce01afd"),
    "apeach": (3770, 1922, "9c2ba3b77638b514088cbb51c166ec3946a05a4eb45cb8afa45e69f69ce84bbd"),
    "davidson": (24783, 20620, "f623e8b7c2b0e21ea42f80e9bc2692bafb49e315c9934511d51f461914d13411"),
}


@cache
def real():
    return load_settings(max_train_rows=0)


@cache
def by_name(name: str):
    return load_source(name, real())


def data(file: str) -> str:
    return str(Path(real().data_dir) / file)


@pytest.mark.needs("data")
@pytest.mark.parametrize("name", BEFORE)
def test_rows_are_what_they_were_before_there_were_recipes(name):
    frame = by_name(name).frame
    rows = frame[["text", "label", "file", "line", "lang"]].values.tolist()
    digest = hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
    assert (len(frame), int(frame.label.sum()), digest) == BEFORE[name]


CLASSES = (
    "categories.label=0:origin,1:appearance,2:politics,3:profanity,4:age,5:gender,6:race,7:religion,8:"
    "&category_separator=%2C"
)
STEPS = "severity=offensiveness&severities=NOT:0,LIKELY:1,OFFEN:2"
#: name -> a plain file and the settings with which it is the same
PLAIN = {
    "beep": [
        ("beep_train.tsv", "text=comments&label=hate&labels=none:0,*:1&quoting=false&lang=ko"),
        ("beep_dev.tsv", "text=comments&label=hate&labels=none:0,*:1&quoting=false&lang=ko"),
    ],
    "apeach": [("apeach_test.csv", "label=class&labels=Default:0,Spoiled:1&lang=ko")],
    "davidson": [("davidson.csv", "text=tweet&label=class&labels=2:0,*:1&lang=en")],
    "kodoli": [
        (
            "kodoli.csv",
            f"text=sentences&label=offensiveness&labels=NOT:0,LIKELY:1,OFFEN:1&lang=ko&{STEPS}",
        )
    ],
    "kmhas": [("kmhas_valid.txt", f"text=document&labels=8:0,*:1&lang=ko&{CLASSES}")],
    "curse": [("curse.txt", "columns=text,label&separator=last |&lang=ko")],
}


@pytest.mark.needs("data")
@pytest.mark.parametrize("name", PLAIN)
def test_real_file_by_name_and_as_a_plain_file_with_settings_are_equal(name):
    parts = [load_source(f"file:{data(file)}?{how}", real()).frame for file, how in PLAIN[name]]
    plain, named = pd.concat(parts, ignore_index=True), by_name(name).frame
    same = ["text", "label", "line", "lang"]
    same += {"kmhas": ["categories"], "kodoli": ["severity"]}.get(name, [])
    pd.testing.assert_frame_equal(plain[same], named[same])


@pytest.mark.needs("data")
@pytest.mark.parametrize("name", PLAIN)
def test_real_file_under_its_own_path_is_read_by_the_recipe_too(name):
    files = [f for part in FORMATS[name].files().values() for f in part]
    parts = [load_source(f"{name}:{data(f.name)}", real()).frame for f in files]
    own, named = pd.concat(parts, ignore_index=True), by_name(name).frame
    same = ["text", "label", "line", "lang", "categories", "severity"]
    pd.testing.assert_frame_equal(own[same], named[same])


@pytest.mark.needs("data")
def test_categories_and_severity_of_the_real_sets():
    def count(name: str) -> dict[str, int]:
        return by_name(name).frame.categories.explode().dropna().value_counts().to_dict()

    assert len(by_name("kmhas").frame) == 8776 and len(by_name("kmhas").bad) == 0
    assert by_name("kmhas").frame.label.sum() == 8776 - 4887
    raw = pd.read_csv(data("kmhas_valid.txt"), sep="\t", dtype=str, quoting=3)
    classes = raw.label.str.split(",").explode().value_counts()
    written = dict(
        zip("01234567", "origin appearance politics profanity age gender race religion".split())
    )
    assert count("kmhas") == {written[k]: int(n) for k, n in classes.items() if k != "8"}
    beep = by_name("beep").frame
    raw = pd.concat(
        pd.read_csv(data(f"beep_{part}.tsv"), sep="\t", quoting=3) for part in ("train", "dev")
    )
    biased = raw[raw.hate != "none"].bias.value_counts()
    assert count("beep") == {"other": biased.others, "gender": biased.gender}
    steps = {"none": 0, "offensive": 1, "hate": 2}
    assert beep.severity.tolist() == raw.hate.map(steps).tolist()
    assert by_name("kodoli").frame.severity.value_counts().to_dict() == {0: 25241, 1: 5608, 2: 7676}
    assert by_name("davidson").frame.severity.value_counts().to_dict() == {
        0: 4163,
        1: 19190,
        2: 1430,
    }
    assert by_name("curse").frame.categories.isna().all()
    for name in ("kmhas", "beep", "apeach"):
        frame = by_name(name).frame
        clean = frame[frame.label == 0].categories
        assert clean.notna().all() and (clean.map(len) == 0).all()


@pytest.mark.needs("data")
def test_real_kmhas_with_a_renamed_header_is_refused(tmp_path):
    text = Path(data("kmhas_valid.txt")).read_text(encoding="utf-8")
    (tmp_path / "comments.csv").write_text(
        text.replace("document\t", "text\t", 1), encoding="utf-8"
    )
    with pytest.raises(DataError) as error:
        load_source(f"csv:{tmp_path}/comments.csv", real())
    for part in ("4,887", "looks like K-MHaS", "use kmhas:"):
        assert part in str(error.value)


@pytest.mark.needs("data")
@pytest.mark.parametrize(
    "name, rows, plain",
    [
        ("beep_unlabeled", 33893, "beep_unlabeled.txt?columns=text&lang=ko"),
        pytest.param("nsmc", 712383, "nsmc_unlabeled.parquet?lang=ko", marks=[pytest.mark.slow]),
    ],
)
def test_unlabelled_sets_are_read_by_name_and_as_plain_files(name, rows, plain):
    named = load_unlabelled(name, real())
    assert len(named.frame) + len(named.bad) == named.read == rows and len(named.bad) == 0
    pd.testing.assert_frame_equal(
        load_unlabelled(f"file:{data(plain)}", real()).frame[["text", "line", "lang"]],
        named.frame[["text", "line", "lang"]],
    )
    with pytest.raises(DataError, match=f"{name}: has no labels"):
        load_source(name, real())
