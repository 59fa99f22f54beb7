"""What one knows of kinds of things: what to call them, which group they are of, where they are.

The table speaks of the kinds in Caltech-101. A folder that is not in it is called by its own name
and asked no question that needs knowledge; add a line to give it some. Folders with one name here
(Faces and Faces_easy) are one kind.
"""

from dataclasses import dataclass

# name | other things people say | group | where one finds it | folders, if not the name
TABLE = """
accordion | squeezebox | instrument | at a concert
airplane | plane, jet | vehicle | in the sky | airplanes
anchor | hook | tool | at sea
ant | bug | animal | in a garden
barrel | cask | container | in a cellar
bass | fish | animal | in water
beaver | rodent | animal | in water
binoculars | field glasses | tool | on a shelf | binocular
bonsai | tree, small tree | plant | in a garden
brain | organ | body part | in a body
dinosaur | reptile, fossil | animal | in a museum | brontosaurus, stegosaurus
buddha | statue, figure | statue | in a temple
butterfly | moth, insect | animal | in a garden
camera | photo camera | device | on a shelf
cannon | gun | weapon | in a museum
car | automobile, auto | vehicle | on a road | car_side
fan | ceiling fan | device | in a house | ceiling_fan
phone | cellphone, mobile | device | in a pocket | cellphone
chair | seat, armchair | furniture | in a house | chair, windsor_chair
chandelier | lamp, light | furniture | in a house
cougar | puma, mountain lion | animal | on land | cougar_body, cougar_face
crab | shellfish | animal | in water
crayfish | lobster | animal | in water
crocodile | alligator, reptile | animal | in water | crocodile, crocodile_head
cup | mug | container | in a kitchen
dog | dalmatian | animal | in a house | dalmatian
banknote | dollar, money | money | in a pocket | dollar_bill
dolphin | whale | animal | in water
dragonfly | insect | animal | in a garden
guitar | electric guitar | instrument | at a concert | electric_guitar
elephant | mammal | animal | on land
emu | bird | animal | on land
euphonium | tuba, horn | instrument | at a concert
jug | pitcher, ewer | container | in a kitchen | ewer
face | person, man | person | in a house | Faces, Faces_easy
ferry | ship | vehicle | at sea
flamingo | bird, pink bird | animal | in water | flamingo, flamingo_head
garfield | cat, cartoon | cartoon | in a comic
gerenuk | antelope | animal | on land
gramophone | record player | device | in a museum
piano | grand piano | instrument | at a concert | grand_piano
turtle | sea turtle, tortoise | animal | in water | hawksbill
headphones | earphones | device | on a shelf | headphone
hedgehog | porcupine | animal | in a garden
helicopter | chopper | vehicle | in the sky
ibis | bird, heron | animal | in water
skate | roller skate | shoe | on a road | inline_skate
joshua tree | tree | plant | in a desert | joshua_tree
kangaroo | wallaby | animal | on land
ship | sailing boat, boat | vehicle | at sea | ketch, schooner
lamp | light | furniture | in a house
laptop | computer, notebook | device | on a desk
leopard | big cat, jaguar | animal | on land | Leopards
llama | alpaca | animal | on land
lobster | crayfish | animal | in water
water lily | lotus, flower | plant | in water | lotus, water_lilly
mandolin | guitar | instrument | at a concert
mayfly | insect | animal | in a garden
candlestick | menorah, candles | furniture | in a temple | menorah
metronome | timer | device | on a shelf
minaret | tower | building | in a city
motorbike | motorcycle, bike | vehicle | on a road | Motorbikes
nautilus | shell | animal | in water
octopus | squid | animal | in water
okapi | mammal | animal | on land
pagoda | temple | building | in a city
panda | bear | animal | on land
pigeon | bird | animal | in a city
pizza | pie | food | in a kitchen
platypus | mammal | animal | in water
pyramid | tomb | building | in a desert
revolver | gun, pistol | weapon | in a holster
rhino | rhinoceros | animal | on land
rooster | chicken | animal | in a garden
saxophone | horn | instrument | at a concert
scissors | shears | tool | on a desk
scorpion | bug, insect | animal | in a desert
sea horse | fish | animal | in water | sea_horse
snoopy | dog, cartoon | cartoon | in a comic
ball | soccer ball, football | toy | on a field | soccer_ball
stapler | office tool | tool | on a desk
starfish | sea star, star | animal | in water
stop sign | sign, road sign | sign | on a road | stop_sign
strawberry | fruit | food | in a kitchen
sunflower | flower, yellow flower | plant | in a garden
tick | bug | animal | in a garden
trilobite | fossil, shell | animal | in a museum
umbrella | parasol | tool | in the rain
watch | clock, wristwatch | device | on a wrist
wheelchair | chair | vehicle | in a hospital
cat | wild cat | animal | on land | wild_cat
wrench | spanner | tool | in a workshop
yin yang | symbol, circle | sign | in a temple | yin_yang
"""


@dataclass(frozen=True)
class Kind:
    """A kind of thing: its name, what else people call it, its group, where one finds it.

    near is never empty; group and found are None where the table says nothing.
    """

    name: str
    near: tuple[str, ...]
    group: str | None = None
    found: str | None = None


def _read_table() -> dict[str, Kind]:
    kinds = {}
    for line in TABLE.strip().splitlines():
        name, near, group, found, *folders = [part.strip() for part in line.split("|")]
        kind = Kind(name, tuple(near.split(", ")), group, found)
        for folder in folders[0].split(", ") if folders else [name.replace(" ", "_")]:
            kinds[folder] = kind
    return kinds


BY_FOLDER = _read_table()


def kind_of(folder: str) -> Kind:
    """The kind that a folder's pictures show."""
    said = folder.replace("_", " ").replace("-", " ").strip().lower()
    return BY_FOLDER.get(folder, Kind(said, ("thing", "something")))
