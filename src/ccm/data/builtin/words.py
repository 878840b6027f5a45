"""Words of the built-in dialogues: the values and wordings of every kind of fact, the small talk.

Names and cities are capitalised, all other values are lower case. Within one kind no value is
contained in another as whole words, and no value occurs in the wordings or in the small talk.
"""

from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    """The sorted entries of a comma-separated list."""
    return tuple(sorted(" ".join(entry.split()) for entry in text.split(",")))


FEMALE_NAMES = _words("""
    Abigail, Agnes, Alice, Alison, Amanda, Amelia, Amy, Andrea, Angela, Anita, Anna, Astrid, Audrey,
    Barbara, Beatrice, Bella, Bianca, Bridget, Camilla, Carla, Carmen, Caroline, Catherine, Cecilia,
    Celine, Chloe, Christina, Clara, Claudia, Cynthia, Daniela, Deborah, Diana, Doris, Edith, Elena,
    Eleanor, Elise, Elizabeth, Ella, Emily, Emma, Erica, Esther, Eva, Evelyn, Fatima, Fiona,
    Frances, Frida, Gabriela, Gloria, Greta, Hannah, Harriet, Heidi, Helen, Ingrid, Irene, Isabel,
    Jane, Janet, Jasmine, Jennifer, Jessica, Joanna, Judith, Julia, Karen, Katie, Kirsten, Laura,
    Lena, Linda, Lisa, Louise, Lucy, Lydia, Magda, Margaret, Maria, Marta, Matilda, Megan, Melissa,
    Michelle, Miriam, Monica, Nadia, Naomi, Natalie, Nicole, Nina, Nora, Olga, Olivia, Pamela,
    Patricia, Paula, Petra, Rachel, Rebecca, Renata, Rita, Rosa, Ruth, Sandra, Sara, Selma, Silvia,
    Sonia, Stella, Susan, Tamara, Tanya, Teresa, Tina, Ursula, Vanessa, Vera, Wendy, Yasmin, Yvonne,
    Zara, Zoe
""")

MALE_NAMES = _words("""
    Aaron, Adam, Adrian, Ahmed, Alan, Albert, Alexander, Ali, Andrew, Anthony, Anton, Arthur,
    Benjamin, Bernard, Boris, Brian, Bruno, Carl, Cedric, Charles, Christopher, Colin, Connor,
    Craig, Damian, Daniel, David, Dennis, Derek, Diego, Dominic, Donald, Douglas, Duncan, Edgar,
    Edward, Elias, Emil, Eric, Ethan, Eugene, Felix, Fernando, Frederick, Gabriel, Gareth, George,
    Gerald, Gilbert, Gordon, Graham, Gregory, Gustav, Hans, Harold, Harry, Hassan, Henry, Howard,
    Hugo, Ian, Igor, Isaac, Ivan, Jacob, James, Jason, Javier, Jeffrey, Jeremy, Joel, John, Jonas,
    Jonathan, Joseph, Joshua, Julian, Karim, Keith, Kenneth, Kevin, Lars, Leo, Leonard, Liam, Louis,
    Lucas, Luke, Magnus, Malcolm, Marco, Martin, Matthew, Michael, Mohammed, Nathan, Neil, Nicholas,
    Nigel, Oliver, Omar, Oscar, Otto, Pablo, Patrick, Paul, Pedro, Peter, Philip, Quentin, Rafael,
    Ralph, Raymond, Richard, Robert, Roger, Roland, Samuel, Scott, Sebastian, Simon, Stefan,
    Stephen, Stuart, Theodore, Thomas, Timothy, Tobias, Tom, Victor, Vincent, Walter, William,
    Xavier, Yusuf
""")

NAMES = tuple(sorted(FEMALE_NAMES + MALE_NAMES))

CITIES = _words("""
    Oslo, Paris, London, Berlin, Madrid, Rome, Vienna, Lisbon, Dublin, Athens, Prague, Warsaw,
    Budapest, Helsinki, Stockholm, Copenhagen, Amsterdam, Brussels, Zurich, Geneva, Munich, Hamburg,
    Cologne, Frankfurt, Stuttgart, Dresden, Leipzig, Milan, Naples, Turin, Venice, Florence,
    Bologna, Barcelona, Valencia, Seville, Granada, Porto, Marseille, Lyon, Toulouse, Bordeaux,
    Lille, Manchester, Liverpool, Leeds, Bristol, Glasgow, Edinburgh, Cardiff, Belfast, Oxford,
    Cambridge, Birmingham, Sheffield, Nottingham, Brighton, Galway, Rotterdam, Utrecht, Antwerp,
    Bruges, Ghent, Salzburg, Graz, Bern, Basel, Krakow, Gdansk, Wroclaw, Riga, Vilnius, Tallinn,
    Minsk, Kyiv, Lviv, Odessa, Moscow, Istanbul, Ankara, Izmir, Sofia, Bucharest, Belgrade, Zagreb,
    Ljubljana, Bratislava, Sarajevo, Skopje, Tirana, Valletta, Nicosia, Reykjavik, Bergen,
    Trondheim, Gothenburg, Malmo, Aarhus, Turku, Tampere, Cairo, Alexandria, Casablanca, Marrakesh,
    Tunis, Algiers, Lagos, Accra, Nairobi, Kampala, Dakar, Luanda, Harare, Lusaka, Maputo, Pretoria,
    Johannesburg, Durban, Cape Town, Addis Ababa, Dubai, Abu Dhabi, Doha, Muscat, Riyadh, Amman,
    Beirut, Damascus, Baghdad, Tehran, Jerusalem, Tel Aviv, Haifa, Karachi, Lahore, Mumbai, Delhi,
    Kolkata, Chennai, Bangalore, Dhaka, Kathmandu, Colombo, Bangkok, Hanoi, Singapore, Jakarta,
    Manila, Kuala Lumpur, Hong Kong, Taipei, Shanghai, Beijing, Seoul, Busan, Tokyo, Osaka, Kyoto,
    Nagoya, Sapporo, Sydney, Melbourne, Brisbane, Perth, Adelaide, Canberra, Auckland, Wellington,
    New York, Boston, Chicago, Seattle, Portland, Denver, Dallas, Houston, Austin, Phoenix, Miami,
    Atlanta, Detroit, Philadelphia, Baltimore, San Francisco, San Diego, Los Angeles, Las Vegas,
    New Orleans, Toronto, Montreal, Vancouver, Ottawa, Calgary, Havana, Mexico City, Lima, Bogota,
    Quito, Santiago, Buenos Aires, Montevideo, Caracas, Rio de Janeiro
""")

JOBS = _words("""
    teacher, doctor, nurse, baker, engineer, lawyer, pilot, farmer, carpenter, plumber, electrician,
    chef, waiter, dentist, architect, journalist, photographer, programmer, mechanic, gardener,
    painter, librarian, accountant, translator, firefighter, butcher, tailor, barber, florist,
    cashier, pharmacist, vet, surgeon, banker, secretary, designer, scientist, musician, actor,
    author, editor, optician, postman, bricklayer, welder, fisherman, beekeeper, zookeeper,
    receptionist, interpreter
""")

COLOURS = _words("""
    red, blue, green, yellow, orange, purple, pink, brown, black, white, grey, turquoise, violet,
    indigo, gold, silver, beige, maroon, navy, teal, cyan, magenta, lavender, burgundy, crimson,
    scarlet, ivory, khaki, lilac, mint, olive, coral, amber, bronze, charcoal, mustard
""")

FOODS = _words("""
    pizza, pasta, sushi, pancakes, lasagna, curry, tacos, noodles, salad, soup, cheese, chocolate,
    waffles, burritos, dumplings, ramen, risotto, paella, falafel, hummus, meatballs, sausages,
    fries, popcorn, strawberries, mangoes, pineapple, steak, salmon, shrimp, couscous, porridge,
    omelettes, sandwiches, doughnuts, muffins, cookies, gnocchi, goulash, yogurt
""")

HOBBIES = _words("""
    painting, drawing, knitting, gardening, fishing, hiking, cycling, swimming, photography, chess,
    pottery, cooking, baking, reading, dancing, running, sailing, surfing, skiing, climbing,
    camping, birdwatching, astronomy, calligraphy, origami, sewing, yoga, karate, judo, archery,
    fencing, bowling, golf, tennis, badminton, woodworking, juggling, skateboarding, embroidery,
    rowing
""")

INSTRUMENTS = _words("""
    piano, guitar, violin, cello, flute, trumpet, drums, saxophone, clarinet, harp, banjo, ukulele,
    accordion, oboe, trombone, tuba, bassoon, harmonica, mandolin, xylophone, organ, bagpipes,
    viola, piccolo, lute, sitar, harpsichord, lyre, zither, marimba, tambourine, bongos, cornet,
    euphonium, vibraphone, balalaika
""")

ANIMALS = _words("""
    dog, cat, rabbit, parrot, hamster, horse, pony, donkey, goat, sheep, pig, hen, duck, goose,
    turtle, tortoise, lizard, snake, goldfish, canary, budgie, ferret, mouse, rat, gerbil, hedgehog,
    frog, gecko, iguana, llama, alpaca, pigeon, cow, spider, chinchilla, parakeet, cockatoo, toad
""")

PET_NAMES = _words("""
    Rex, Buddy, Fluffy, Whiskers, Rocky, Snowball, Biscuit, Shadow, Patches, Mittens, Bubbles,
    Nibbles, Pepper, Ziggy, Bandit, Scout, Rusty, Tiger, Smokey, Pickles, Noodle, Peanut, Bolt,
    Comet, Dash, Fudge, Ginger, Domino, Spike, Sparky, Fido, Rover, Snoopy, Pluto, Pumpkin, Truffle,
    Marble, Misty, Oreo, Panda, Pebbles, Pippin, Puzzle, Socks, Sooty, Speedy, Thumper, Toffee,
    Tinker, Turbo, Yoda, Zorro, Gizmo, Goofy, Hopper, Jumbo, Kiwi, Cupcake
""")

SmallTalk = tuple[str, tuple[str, ...]]
"""A user line and the replies to choose from."""

GREETINGS: tuple[SmallTalk, ...] = (
    ("Hello!", ("Hello! How are you today?", "Hi there!")),
    ("Hi there!", ("Hi! Nice to see you.", "Hello!")),
    ("Good morning!", ("Good morning! Did you sleep well?",)),
    ("Good evening!", ("Good evening! How was your day?",)),
    ("Hey, are you there?", ("Yes, I am here.",)),
    ("Hello, can we talk a bit?", ("Of course, I am listening.",)),
)

GOODBYES: tuple[SmallTalk, ...] = (
    ("Goodbye!", ("Goodbye! See you soon.",)),
    ("I have to go now.", ("All right, see you later!",)),
    ("Good night!", ("Good night, sleep well!",)),
    ("See you tomorrow!", ("See you tomorrow!",)),
    ("That is all for today.", ("Okay, have a good day!",)),
)

SMALL_TALK: tuple[SmallTalk, ...] = (
    ("How are you?", ("I am fine, thank you.", "Very well, and you?")),
    ("How is it going?", ("It is going well, thanks.",)),
    ("What is new?", ("Not much, I am glad you are here.",)),
    ("It is raining again today.", ("Do not forget your umbrella!", "Then stay warm and dry.")),
    ("The sun is shining at last.", ("Then enjoy the sunshine!",)),
    ("It is very cold outside.", ("Put on a warm coat then.",)),
    ("It is so hot today.", ("Remember to drink some water.",)),
    ("There was a big storm last night.", ("I hope nothing was damaged.",)),
    ("Do you think it will snow?", ("Maybe, it is hard to say.",)),
    ("I slept badly last night.", ("I am sorry to hear that.", "I hope you can rest soon.")),
    ("I had a long day.", ("Then take some time to relax.",)),
    ("I am a bit tired.", ("A short break may help.",)),
    ("I feel great today.", ("I am happy to hear that!",)),
    ("I am a little bored.", ("We could chat for a while.",)),
    ("I missed my bus this morning.", ("Oh no, how annoying!",)),
    ("The traffic was terrible today.", ("That sounds stressful.",)),
    ("My phone is broken again.", ("That is bad luck.",)),
    ("I lost my keys yesterday.", ("I hope you find them soon.",)),
    ("I have a lot to do this week.", ("One thing at a time, you can do it.",)),
    ("I watched a good film yesterday.", ("That sounds nice, was it funny?",)),
    ("I bought new shoes today.", ("I hope they are comfortable.",)),
    ("The neighbours are loud again.", ("That must be annoying.",)),
    ("I am waiting for the train.", ("I hope it is on time.",)),
    ("I went for a walk after lunch.", ("Fresh air is always good.",)),
    ("The weekend was far too short.", ("It always is!",)),
    ("Tomorrow is a holiday.", ("Enjoy your free day!",)),
    ("My visit to the museum was fun.", ("I am glad you enjoyed it.",)),
    ("I have a small headache.", ("I hope you feel better soon.",)),
    ("Thank you!", ("You are welcome!", "My pleasure.")),
    ("Thanks for your help.", ("You are welcome!",)),
    ("That is very kind of you.", ("I am happy to help.",)),
    ("You are funny.", ("Thank you, I try my best.",)),
    ("Tell me a joke.", ("Why did the bicycle fall over? It was two tired.",)),
    ("Do you know another joke?", ("What gets wetter as it dries? A towel.",)),
    ("What can you do?", ("I can chat and remember what you tell me.",)),
    ("Who are you?", ("I am a small assistant.",)),
    ("Are you a real person?", ("No, I am a computer program.",)),
    ("Do you ever sleep?", ("No, I am always awake.",)),
    ("Can you keep a secret?", ("Yes, I will not tell anyone.",)),
    ("What day is it today?", ("I have no calendar, sorry.",)),
    ("What time is it?", ("Sorry, I cannot see a clock.",)),
    ("Is there any news?", ("I have not heard any news.",)),
    ("What should I do tonight?", ("How about a quiet evening at home?",)),
    ("Can I ask you something?", ("Of course, go ahead.",)),
    ("Let me think for a moment.", ("Take your time.",)),
    ("Never mind.", ("No problem.",)),
    ("Sorry, I was away for a minute.", ("No problem, welcome back.",)),
    ("Life is good.", ("That is great to hear.",)),
)

STATEMENT_LEADS = (
    "By the way, ", "Hi! ", "Well, ", "You know, ", "Just so you know, ", "Let me tell you, ",
)  # fmt: skip
STATEMENT_TAILS = (
    " and the weather is nice today.", ", just so you know.", ", as you may know.",
    ", in case you ask.",
)  # fmt: skip
QUESTION_LEADS = ("Tell me, ", "Hey, ", "By the way, ", "Okay, ", "Quick question: ")
DOUBLE_LEADS = ("Got it, ", "Okay, ", "I see, ", "Good to know, ")


@dataclass(frozen=True)
class Kind:
    """One kind of fact and its wordings.

    Fields of the wordings: {v} the value, {a} the value with a/an, {k} the animal, {ak} the animal
    with a/an; in `changes` also {old} and {aold}, the value that no longer holds.
    """

    name: str
    values: tuple[str, ...]  # every value of the kind, held-out ones included
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str  # the reply to every question on a told fact
    replies: tuple[str, ...]  # replies to a statement
    changes: tuple[str, ...] = ()  # empty: the fact never changes
    change_replies: tuple[str, ...] = ()
    draws: tuple[str, ...] = ()  # the values dialogues use; empty: all values


def _relative(name: str, word: str, draws: tuple[str, ...], extra: tuple[str, ...]) -> Kind:
    """The kind "name of a relative or friend", who is called `word` in the wordings."""
    statements = (
        "My {r} is called {v}.", "My {r}'s name is {v}.", "I have a {r} called {v}.",
        "I have a {r} named {v}.", "The name of my {r} is {v}.", "{v} is my {r}.",
        "I grew up with my {r} {v}.", "I often meet my {r} {v}.", *extra,
    )  # fmt: skip
    questions = (
        "What is my {r} called?", "What is my {r}'s name?", "What's my {r}'s name?",
        "What is the name of my {r}?", "Do you remember my {r}'s name?", "Who is my {r}?",
        "Do you know what my {r} is called?",
    )  # fmt: skip
    replies = (
        "{v} is a nice name.", "Say hi to {v} from me!", "{v} sounds like a nice {r}.",
        "Good to know, your {r} is {v}.", "I would like to meet {v}.",
    )  # fmt: skip
    told, asked, answered = (
        tuple(text.replace("{r}", word) for text in texts) for texts in (statements, questions, replies)
    )
    answer = f"Your {word} is called {{v}}."
    return Kind(name, NAMES, told, asked, answer, answered, draws=draws)


_PET_STATEMENTS = (
    "I have {ak} called {v}.", "I have {ak} named {v}.", "My {k} is called {v}.",
    "My {k}'s name is {v}.", "The name of my {k} is {v}.", "We have {ak} called {v} at home.",
    "I own {ak} called {v}.", "{v} is my {k}.", "My pet is {ak} called {v}.",
    "I take care of {ak} named {v}.",
)  # fmt: skip
_PET_REPLIES = (
    "{v} is a great name for {ak}.", "{v} sounds like a lovely {k}.", "Say hello to {v} for me!",
    "{v} must be a sweet {k}.", "Nice, {ak} called {v}!",
)  # fmt: skip

# fmt: off
_ALL_KINDS = (
    Kind(
        "name", NAMES,
        ("My name is {v}.", "I'm {v}.", "I am {v}.", "I am called {v}.", "You can call me {v}.",
         "People call me {v}.", "My first name is {v}.", "Call me {v}, please.",
         "My friends call me {v}.", "The name is {v}.", "Everyone calls me {v}."),
        ("What is my name?", "What's my name?", "Do you remember my name?", "Who am I?",
         "Do you know my name?", "Can you tell me my name?", "What am I called?"),
        "Your name is {v}.",
        ("Nice to meet you, {v}!", "Hello {v}, good to meet you.", "Welcome, {v}!",
         "Pleased to meet you, {v}."),
    ),
    Kind(
        "home", CITIES,
        ("I live in {v}.", "My home is in {v}.", "I have a flat in {v}.", "My house is in {v}.",
         "I am living in {v}.", "{v} is where I live.", "I've lived in {v} for years.",
         "Home for me is {v}.", "We live in {v}.", "The city I live in is {v}.",
         "I live with my family in {v}."),
        ("Where do I live?", "Which city do I live in?", "Where is my home?",
         "Do you know where I live?", "What city do I live in?", "Can you tell me where I live?"),
        "You live in {v}.",
        ("{v} sounds lovely.", "Oh, {v} is a great city.", "Got it, you live in {v}.",
         "It must be nice to live in {v}."),
        ("I moved to {v}.", "I have just moved to {v}.", "I live in {v} now.",
         "I left {old} and moved to {v}.", "I have a new home in {v}."),
        ("Okay, you live in {v} now.", "Enjoy your new home in {v}!", "I hope you like {v}."),
    ),
    Kind(
        "job", JOBS,
        ("I work as {a}.", "I am {a}.", "I'm {a} by profession.", "I have a job as {a}.",
         "I earn my living as {a}.", "I've been {a} for years.", "I am employed as {a}.",
         "I have worked as {a} for ten years.", "Being {a} is my job.", "I got a job as {a}."),
        ("What is my job?", "What's my job?", "What do I do for a living?", "What do I work as?",
         "Do you remember my job?", "What is my profession?"),
        "You work as {a}.",
        ("Got it, you work as {a}.", "Being {a} sounds interesting.", "So you are {a}, great!",
         "Oh, {a}! That is a good job."),
        ("I changed my job, I am {a} now.", "I found a new job as {a}.", "I work as {a} now.",
         "I am not {aold} anymore, I am {a} now.", "I have a new job, I am {a}."),
        ("Okay, you work as {a} now.", "Good luck as {a}!", "So now you are {a}, great!"),
    ),
    Kind(
        "colour", COLOURS,
        ("My favorite color is {v}.", "My favourite colour is {v}.", "I like the color {v} best.",
         "{v} is my favorite color.", "I love the color {v}.", "I love the colour {v}.",
         "The color I like best is {v}.", "For me, {v} is the best color.",
         "The colour I love most is {v}.", "If I had to pick one color, it would be {v}."),
        ("What is my favorite color?", "What is my favourite colour?", "Which color do I love?",
         "Which color do I like best?", "Do you remember my favorite color?",
         "Which colour do I like most?"),
        "Your favorite color is {v}.",
        ("{v} is a beautiful color.", "{v} is a nice color.", "Good choice, I like {v} too.",
         "I see, you like {v}."),
        ("My favorite color is {v} now.", "I like the color {v} better now.",
         "My favorite color is {v} now, not {old} anymore.",
         "I changed my mind, my favourite colour is {v}."),
        ("Okay, now it is {v}.", "So {v} is your favorite color now.", "{v} is nice as well."),
    ),
    Kind(
        "food", FOODS,
        ("I love eating {v}.", "My favorite food is {v}.", "My favourite food is {v}.",
         "I like eating {v} best.", "The food I love most is {v}.", "I could eat {v} every day.",
         "My favorite thing to eat is {v}.", "Nothing tastes better than {v}.",
         "When I am hungry, I want {v}.", "I always enjoy eating {v}."),
        ("What is my favorite food?", "What is my favourite food?", "What do I love eating?",
         "Which food do I like best?", "What do I like to eat?", "Do you remember my favorite food?"),
        "Your favorite food is {v}.",
        ("Mmm, {v}! Good choice.", "I see, you love {v}.", "Enjoy your {v}!",
         "Who does not love {v}?"),
        ("My favorite food is {v} now.", "These days I prefer eating {v}.",
         "I changed my mind, my favorite food is {v}.", "Now I like {v} more than {old}."),
        ("Okay, now it is {v}.", "So {v} is your favorite food now.", "Mmm, {v}! Good too."),
    ),
    Kind(
        "hobby", HOBBIES,
        ("My hobby is {v}.", "I enjoy {v} in my free time.", "In my free time I enjoy {v}.",
         "I am really into {v}.", "{v} is my hobby.", "My favorite hobby is {v}.",
         "My favourite pastime is {v}.", "My hobby has always been {v}.",
         "I spend my free time on {v}.", "At the weekend I enjoy {v}."),
        ("What is my hobby?", "What's my hobby?", "What do I do in my free time?",
         "Which hobby do I have?", "What do I enjoy in my free time?", "Do you remember my hobby?"),
        "Your hobby is {v}.",
        ("{v} is a great hobby.", "{v} sounds like fun.", "Nice, you enjoy {v}.",
         "I see, your hobby is {v}."),
        ("I have a new hobby, it is {v}.", "My hobby is {v} now.", "I took up {v} instead.",
         "I am into {v} now, not {old} anymore."),
        ("Okay, your hobby is {v} now.", "{v} is a good hobby too.", "Have fun with {v}!"),
    ),
    Kind(
        "instrument", INSTRUMENTS,
        ("I play the {v}.", "I can play the {v}.", "My instrument is the {v}.",
         "I have played the {v} for years.", "I play the {v} in a band.", "I like playing the {v}.",
         "The instrument I play is the {v}.", "I practise the {v} every day.",
         "I learned to play the {v} as a child.", "I am good at playing the {v}."),
        ("Which instrument do I play?", "What instrument do I play?", "What is my instrument?",
         "Do you know which instrument I play?", "Which instrument can I play?",
         "Do you remember my instrument?"),
        "You play the {v}.",
        ("Great, you play the {v}!", "The {v}! That is wonderful.", "I love the sound of the {v}.",
         "It must be fun to play the {v}."),
        ("I switched to the {v}.", "I play the {v} now.", "I have a new instrument, the {v}.",
         "I stopped playing the {old}, now I play the {v}."),
        ("Okay, you play the {v} now.", "Have fun with the {v}!", "I like the {v} too."),
    ),
    Kind(
        "pet", PET_NAMES, _PET_STATEMENTS,
        ("What is my {k} called?", "What is my {k}'s name?", "What's my {k}'s name?",
         "What is the name of my {k}?", "Do you remember my {k}'s name?",
         "Do you know what my {k} is called?"),
        "Your {k} is called {v}.", _PET_REPLIES,
    ),
    Kind(
        "pet_kind", ANIMALS, _PET_STATEMENTS,
        ("What kind of pet do I have?", "Which animal do I have?", "What pet do I have?",
         "What animal is my pet?", "What kind of animal do I have?",
         "Do you remember which pet I have?"),
        "You have {a}.", _PET_REPLIES,
    ),
    _relative("sister", "sister", FEMALE_NAMES,
              ("My big sister is called {v}.", "I have one sister, {v}.")),
    _relative("brother", "brother", MALE_NAMES,
              ("My little brother is called {v}.", "I have one brother, {v}.")),
    _relative("friend", "best friend", NAMES,
              ("My best friend since school is {v}.", "{v} has always been my best friend.")),
)
# fmt: on

KINDS: dict[str, Kind] = {kind.name: kind for kind in _ALL_KINDS}
