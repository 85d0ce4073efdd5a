"""Class names of data sets, with the prompts that three families of published methods use.

The lists of words for background, person and television are those of the methods' released
configurations. All other prompts are the data sets' own names; where those are two words, the
released files may write them otherwise, and a file of one's own (`read_classes`) is the way to
reproduce them to the letter. The bar of a decision rule belongs to its prompts: more words for the
background lower every probability.
"""

from typing import Literal

from ovss_refine.checks import check_choice
from ovss_refine_adapters.text import Classes

Family = Literal["sclip", "clearclip", "proxyclip"]
DataSet = Literal["voc20", "voc21", "coco-object", "cityscapes"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


BACKGROUND = _words(
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, "
    "lamp, door, window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence"
)
# ProxyCLIP's for COCO-Object leaves these out.
_LONG = _words("lamp, door, window, wardrobe, ceiling, shelf, curtain, stair, fence")
SHORT_BACKGROUND = tuple(word for word in BACKGROUND if word not in _LONG)
_CLOTHES = _words("shirt, jeans, dress, sweater, skirt, jacket")
PERSON = ("person", *(f"person in {word}" for word in _CLOTHES))
TELEVISION = _words("television monitor, tv monitor, monitor, television, screen")

VOC = _words(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
COCO = _words(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, "
    "zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports "
    "ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine "
    "glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot "
    "dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
CITYSCAPES = _words(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle"
)
# What all three families call two classes of VOC.
RENAMED = {"boat": "ship", "diningtable": "table"}


def class_set(data_set: DataSet, family: Family = "sclip") -> Classes:
    """Return the classes of a data set, in the order of its labels.

    Args:
        data_set: "voc20" (no background), "voc21", "coco-object" (81) or "cityscapes" (19).
        family: whose prompts: "sclip" (also NACLIP, SC-CLIP and CASS: 26 words for background, 7
            or 8 for person, 5 for television), "clearclip" (one word each, "background" too)
            or "proxyclip" (26 or 17 words for background, else one each).

    Raises:
        ValueError: on another data set or family.
    """
    check_choice("data_set", data_set, ("voc20", "voc21", "coco-object", "cityscapes"))
    check_choice("family", family, ("sclip", "clearclip", "proxyclip"))
    if data_set == "cityscapes":
        # The released files write its names as one word.
        return Classes(CITYSCAPES, tuple((name.replace(" ", ""),) for name in CITYSCAPES))
    names = COCO if data_set == "coco-object" else VOC
    prompts: list[tuple[str, ...]] = [(RENAMED.get(name, name),) for name in names]
    if family == "sclip":
        person = (*PERSON, "body") if data_set == "coco-object" else PERSON
        many = {"person": person, "tvmonitor": TELEVISION}
        prompts = [many.get(name, row) for name, row in zip(names, prompts, strict=True)]
    if data_set == "voc20":
        return Classes(names, tuple(prompts))
    background = BACKGROUND
    if family == "clearclip":
        background = ("background",)
    elif family == "proxyclip" and data_set == "coco-object":
        background = SHORT_BACKGROUND
    return Classes(("background", *names), (background, *prompts))
