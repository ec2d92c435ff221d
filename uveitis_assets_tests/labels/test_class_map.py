"""Categories, maps and label-space policies."""

import pytest
from pydantic import ValidationError

from uveitis_assets.labels.class_map import UnknownClassError, load_class_map
from uveitis_assets.labels.configuration import LabelConfiguration

# Written down a second time on purpose: ids of published files must not move.
CATEGORIES = [
    "foyer_choroidien",
    "hyalite",
    "membrane_epiretinenne",
    "vascularite",
    "hemorragie",
    "oedeme_maculaire",
    "nodule_choroidien",
    "papille_excavee",
    "granulome_choroidien",
    "laser_retinien",
    "macroanevrisme_arteriel",
    "atrophie_peripapillaire",
    "trou_opercule",
    "condensations_vitre",
    "exudats",
    "oedeme_papillaire",
    "ischemie_retine",
    "nodule_cotonneux",
    "anneau_weiss",
    "lesion_retine",
]


def test_categories_keep_their_published_ids() -> None:
    class_map = load_class_map()
    assert class_map.names == {i + 1: name for i, name in enumerate(CATEGORIES)}
    space = class_map.label_space("obb")
    assert [space.category_of(str(k)) for k in range(1, 21)] == list(range(1, 21))


@pytest.mark.parametrize(
    ("folder", "category_id"),
    [
        ("HardExudate_Masks", 15),
        ("SoftExudate_Masks", 15),
        ("Hemohedge_Masks", 5),
        ("Microaneurysms_Masks", 11),
        ("IRMA_Masks", 17),
        ("Neovascularization_Masks", 4),
    ],
)
def test_fgadr_folders_mean_the_published_categories(folder: str, category_id: int) -> None:
    assert load_class_map().label_space("mask").category_of(folder) == category_id


def test_a_policy_drops_categories_and_keeps_ids() -> None:
    class_map = load_class_map()
    assert sorted(class_map.select(["main9"])) == [1, 2, 5, 7, 9, 11, 15, 16, 17]
    assert class_map.select(["vascularite"]) == {4: "vascularite"}
    assert class_map.select(["main9", "vascularite", "hyalite"]) == class_map.select(["vascularite", "main9"])
    assert len(class_map.select([])) == 20
    space = class_map.label_space("obb", classes=["hyalite", "exudats"])
    assert space.coco_categories() == [{"id": 2, "name": "hyalite"}, {"id": 15, "name": "exudats"}]
    assert space.category_of("4") == 4


def test_reachable_categories_are_those_that_the_labels_can_name() -> None:
    assert sorted(load_class_map().label_space("mask").reachable) == [4, 5, 11, 15, 17]


def test_own_label_classes_replace_the_shipped_map() -> None:
    space = load_class_map().label_space("mask", label_classes={"MA": "macroanevrisme_arteriel"})
    assert space.category_of("MA") == 11
    with pytest.raises(UnknownClassError, match="'HardExudate_Masks', expected one of MA"):
        space.category_of("HardExudate_Masks")


def test_unknown_names_fail_with_the_known_ones() -> None:
    class_map = load_class_map()
    with pytest.raises(UnknownClassError, match=r"'exudate'.*exudats.*main9"):
        class_map.select(["exudate"])
    with pytest.raises(UnknownClassError, match=r"'21', expected one of 1, 2, 3,.* 19, 20$"):
        class_map.label_space("obb").category_of("21")
    with pytest.raises(ValidationError, match=r"'exudate'.*exudats"):
        LabelConfiguration(format="mask", classes=("exudate",))
    with pytest.raises(ValidationError, match=r"'MAs'.*macroanevrisme_arteriel"):
        LabelConfiguration(format="mask", label_classes={"MA": "MAs"})
