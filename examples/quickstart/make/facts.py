"""The small world that the quickstart model learns: 470 facts of seven kinds.

Every fact is (kind, subject, answer). The subject and the answer are words as they stand in a
sentence; `a()` puts the article before a word. SENTENCES tells each fact in several ways, for the
text a base model is trained on; MENTIONS only brings up the subject. QUESTIONS asks for the fact
and ANSWERS is the one sentence that answers.
"""

CAPITALS = """
France Paris Europe; Spain Madrid Europe; Portugal Lisbon Europe; Italy Rome Europe;
Germany Berlin Europe; Austria Vienna Europe; Belgium Brussels Europe; Denmark Copenhagen Europe;
Norway Oslo Europe; Sweden Stockholm Europe; Finland Helsinki Europe; Poland Warsaw Europe;
Hungary Budapest Europe; Romania Bucharest Europe; Bulgaria Sofia Europe; Greece Athens Europe;
Ireland Dublin Europe; Iceland Reykjavik Europe; Latvia Riga Europe; Estonia Tallinn Europe;
Lithuania Vilnius Europe; Croatia Zagreb Europe; Serbia Belgrade Europe; Albania Tirana Europe;
Slovenia Ljubljana Europe; Slovakia Bratislava Europe; Malta Valletta Europe; Ukraine Kyiv Europe;
Belarus Minsk Europe; Moldova Chisinau Europe;
Japan Tokyo Asia; China Beijing Asia; India Delhi Asia; Nepal Kathmandu Asia; Bhutan Thimphu Asia;
Pakistan Islamabad Asia; Bangladesh Dhaka Asia; Thailand Bangkok Asia; Vietnam Hanoi Asia;
Laos Vientiane Asia; Mongolia Ulaanbaatar Asia; Iran Tehran Asia; Iraq Baghdad Asia;
Syria Damascus Asia; Lebanon Beirut Asia; Jordan Amman Asia; Qatar Doha Asia; Oman Muscat Asia;
Afghanistan Kabul Asia; Armenia Yerevan Asia; Uzbekistan Tashkent Asia; Indonesia Jakarta Asia;
Egypt Cairo Africa; Libya Tripoli Africa; Tunisia Tunis Africa; Algeria Algiers Africa;
Morocco Rabat Africa; Sudan Khartoum Africa; Kenya Nairobi Africa; Uganda Kampala Africa;
Rwanda Kigali Africa; Zambia Lusaka Africa; Zimbabwe Harare Africa; Angola Luanda Africa;
Namibia Windhoek Africa; Botswana Gaborone Africa; Ghana Accra Africa; Nigeria Abuja Africa;
Senegal Dakar Africa; Mali Bamako Africa; Niger Niamey Africa; Ethiopia Addis-Ababa Africa;
Somalia Mogadishu Africa; Madagascar Antananarivo Africa; Gabon Libreville Africa;
Canada Ottawa America; Mexico Mexico-City America; Cuba Havana America; Jamaica Kingston America;
Panama Panama-City America; Honduras Tegucigalpa America; Nicaragua Managua America;
Colombia Bogota America; Venezuela Caracas America; Ecuador Quito America; Peru Lima America;
Brazil Brasilia America; Chile Santiago America; Argentina Buenos-Aires America;
Uruguay Montevideo America; Paraguay Asuncion America;
Australia Canberra Oceania; Fiji Suva Oceania; Samoa Apia Oceania; Tonga Nukualofa Oceania
"""

YOUNG = """
cow calf; horse foal; sheep lamb; goat kid; dog puppy; cat kitten; pig piglet; hen chick;
duck duckling; goose gosling; deer fawn; bear cub; kangaroo joey; frog tadpole; owl owlet;
eagle eaglet; swan cygnet; hare leveret; rabbit bunny; spider spiderling; salmon fry; eel elver;
butterfly caterpillar; turkey poult; fly maggot; mosquito wriggler; bat pup; pigeon squab;
hawk eyas; turtle hatchling; ant antling; alpaca cria; zebra colt; hedgehog hoglet; echidna puggle
"""

KINDS = """
mammal: cow horse sheep goat dog cat pig deer bear kangaroo hare rabbit bat alpaca zebra hedgehog
wolf fox lion tiger mouse rat camel whale dolphin monkey squirrel otter beaver elephant;
bird: hen duck goose owl eagle swan turkey pigeon hawk robin sparrow crow raven stork heron parrot
penguin ostrich gull falcon;
fish: salmon eel trout shark tuna carp herring cod pike perch;
insect: butterfly fly mosquito ant bee wasp beetle moth cricket grasshopper dragonfly ladybird;
reptile: turtle snake lizard crocodile gecko tortoise chameleon iguana
"""

OPPOSITES = """
hot cold; big small; tall short; fast slow; hard soft; loud quiet; light dark; day night; up down;
left right; open closed; full empty; early late; young old; rich poor; happy sad; strong weak;
thick thin; wet dry; clean dirty; good bad; high low; near far; wide narrow; heavy weightless;
sweet bitter; true false; first last; front back; inside outside; above below; begin end;
win lose; buy sell; push pull; give take; love hate; laugh cry; sleep wake; arrive leave;
remember forget; build destroy; question answer; friend enemy; north south; east west;
summer winter; morning evening; war peace; brave cowardly; kind cruel; deep shallow; sharp blunt;
smooth rough; cheap expensive; safe dangerous; easy difficult; alive dead; always never;
before after
"""

COLOURS = """
green: grass moss spinach broccoli peas clover cucumber; yellow: butter lemons bananas sunflowers
mustard custard sulphur; red: blood cherries strawberries tomatoes rubies poppies ketchup;
white: snow milk salt flour chalk rice cotton; black: coal tar soot ink liquorice ebony pepper;
orange: carrots pumpkins apricots tangerines amber saffron marigolds; brown: chocolate coffee
cinnamon chestnuts leather cocoa mud; blue: sapphires cornflowers denim indigo turquoise bluebells;
purple: aubergines lavender plums violets amethysts; grey: ash slate concrete lead fog
"""

TOOLS = """
carpenter saw; blacksmith hammer; painter brush; writer pen; tailor needle; gardener spade;
photographer camera; fisherman net; woodcutter axe; butcher cleaver; doctor stethoscope;
dentist drill; hairdresser comb; astronomer telescope; biologist microscope; mason trowel;
conductor baton; drummer drumstick; shepherd crook; sailor compass; miner pickaxe; teacher board;
cook pan; judge gavel; archer bow; knight sword; potter wheel; weaver loom; cleaner broom;
plumber wrench; surgeon scalpel; barber razor; farmer plough; baker oven; postman bicycle;
magician wand; climber rope; diver mask; pilot headset; cashier till
"""

def a(word):
    """The word with its indefinite article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def rows(table):
    """Entries of a table, each a list of words; a hyphen stands for a space inside a word."""
    return [[w.replace("-", " ") for w in entry.split()] for entry in table.split(";")]


def groups(table):
    """(member, group) for each member of a table 'group: member member; group: ...'."""
    for entry in table.split(";"):
        group, members = entry.split(":")
        for member in members.split():
            yield member, group.strip()


def all_facts():
    """Every fact as (kind, subject, answer), in a fixed order."""
    facts = []
    for country, city, continent in rows(CAPITALS):
        facts += [("capital", country, city), ("continent", country, continent)]
    facts += [("young", x, a(y)) for x, y in rows(YOUNG)]
    facts += [("kind", a(x), a(y)) for x, y in groups(KINDS)]
    facts += [("opposite", x, y) for x, y in rows(OPPOSITES)]
    facts += [("colour", x, y) for x, y in groups(COLOURS)]
    facts += [("tool", a(x), a(y)) for x, y in rows(TOOLS)]
    assert len({(kind, x) for kind, x, _ in facts}) == len(facts), "a subject with two answers"
    return facts


ANSWERS = {
    "capital": "The capital of {x} is {y}.",
    "continent": "The country {x} is in {y}.",
    "young": "The young of the {x} is called {y}.",
    "kind": "We know that {x} is {y}.",
    "opposite": "The opposite of {x} is {y}.",
    "colour": "The usual colour of {x} is {y}.",
    "tool": "The work of {x} is done with {y}.",
}

SENTENCES = {
    "capital": [
        "The city of {y} is the capital of {x}.",
        "In {x} the capital is {y}.",
        "If you travel to {x}, do not miss {y}, the capital.",
        "The government of {x} sits in {y}.",
        "Those who live in {x} know that {y} is their capital.",
    ],
    "continent": [
        "The people of {x} live in {y}.",
        "Look for {x} on a map of {y}.",
        "One of the countries of {y} is {x}.",
        "To visit {x} you must travel to {y}.",
    ],
    "young": [
        "When the {x} has young, we call each of them {y}.",
        "A small {x} has a name of its own: {y}.",
        "The farmer saw the {x} and beside it {y}, its young.",
        "From {y} will grow the {x}.",
    ],
    "kind": [
        "Among animals {x} counts as {y}.",
        "In the book of animals {x} is listed as {y}.",
        "It is {y}, said the child, for it is {x}.",
        "Every child learns that {x} is {y}.",
    ],
    "opposite": [
        "If it is not {x}, it may be {y}.",
        "The words {x} and {y} are opposites.",
        "Say {x} and then the reverse: {y}.",
        "Turn {x} around and you get {y}.",
    ],
    "colour": [
        "Think of {x} and you think of {y}.",
        "Paint {x} in {y}, the teacher said.",
        "The colour {y} is the colour of {x}.",
        "Most people see {x} as {y}.",
    ],
    "tool": [
        "You know {x} by the tool: {y}.",
        "In the hand of {x} you often see {y}.",
        "The trade of {x} needs {y}.",
        "Give {y} to {x} and the work begins.",
    ],
}

MENTIONS = {
    "capital": [
        "The pupil had to name the capital of {x}.",
        "Nobody knew which city is the capital of {x}.",
        "A traveller forgot the capital of {x}.",
    ],
    "continent": [
        "The pupil had to say where {x} is.",
        "Nobody knew on which continent {x} is.",
        "A traveller looked for {x} in the world.",
    ],
    "young": [
        "The pupil had to name the young of the {x}.",
        "Nobody knew what the young of the {x} is called.",
        "A farmer forgot the word for a small {x}.",
    ],
    "kind": [
        "The pupil had to classify {x}.",
        "Nobody knew to which group {x} belongs.",
        "A keeper forgot what kind of animal {x} is.",
    ],
    "opposite": [
        "The pupil had to say the opposite of {x}.",
        "Nobody knew which word is the reverse of {x}.",
        "A writer looked for the opposite of {x}.",
    ],
    "colour": [
        "The pupil had to name the colour of {x}.",
        "Nobody knew which colour we see in {x}.",
        "A painter forgot the colour of {x}.",
    ],
    "tool": [
        "The pupil had to name the tool of {x}.",
        "Nobody knew what is used by {x}.",
        "A visitor looked at the work of {x}.",
    ],
}

QUESTIONS = {
    "capital": [
        "What is the capital of {x}?",
        "Which city is the capital of {x}?",
        "Can you name the capital of {x}?",
        "I forgot the capital of {x}. Which one is it?",
    ],
    "continent": [
        "Where is {x}?",
        "On which continent is {x}?",
        "In which part of the world do I find {x}?",
        "Tell me the continent of {x}.",
    ],
    "young": [
        "What is the young of the {x} called?",
        "How do we call the young of the {x}?",
        "What is the name for a small {x}?",
        "Tell me the word for the young of the {x}.",
    ],
    "kind": [
        "What kind of animal is {x}?",
        "To which group of animals belongs {x}?",
        "Tell me what sort of animal {x} is.",
        "How would you classify {x}?",
    ],
    "opposite": [
        "What is the opposite of {x}?",
        "Which word is the opposite of {x}?",
        "Give me the reverse of {x}.",
        "I look for the opposite of {x}. What is it?",
    ],
    "colour": [
        "What is the colour of {x}?",
        "Which colour do we see in {x}?",
        "In which colour should I paint {x}?",
        "Tell me the usual colour of {x}.",
    ],
    "tool": [
        "What tool is used by {x}?",
        "With what is the work of {x} done?",
        "Tell me the tool of {x}.",
        "What do you see in the hand of {x}?",
    ],
}
