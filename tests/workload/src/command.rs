//! What a guest can be told to do, and the text for it.

use std::time::Duration;

use plimsoll_units::{Bytes, ParseSizeError};

/// One command.
///
/// Written with blanks on the console (`fill 96M 7`) and with colons on the kernel's command line (`fill:96M:7`),
/// where a blank would end the word. Sizes are as people write them, seconds may have a fraction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// One step.
    Step(Step),
    /// `script A;B;C`: steps one after the other, each announced with the guest's clock.
    Script(Vec<Step>),
    /// `stats`: what the running command did in each of the last seconds.
    Stats,
    /// `stop`: ends the running command or script early.
    Stop,
    /// `sh LINE`: runs a line in the guest's shell.
    Shell(String),
}

/// What a script may consist of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Carried out by the process that holds the memory.
    Work(Work),
    /// Carried out by `serve` itself.
    Ask(Ask),
}

/// What may take long and concerns held memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// `fill SIZE [SEED]`: takes memory and writes a pattern into every page of it.
    Fill(Bytes, u64),
    /// `grab SIZE [SEED]`: like `fill`, but in one piece: promised all of it before the first page is written.
    Grab(Bytes, u64),
    /// `verify`: checks every byte of every held page.
    Verify,
    /// `touch SECONDS [PAGES_PER_SECOND]`: reads, checks and half the time rewrites pages picked at random.
    Touch(Duration, Option<u64>),
    /// `free [SIZE]`: gives back the memory taken last, rounded up to whole MiB, or all of it.
    Free(Option<Bytes>),
    /// `hold SECONDS`: does nothing.
    Hold(Duration),
    /// `churn SECONDS SIZE`: allocates, fills, checks and frees at most SIZE, as a compiler run would.
    Churn(Duration, Bytes),
    /// `lock SIZE`: like `fill`, and locks the pages into memory.
    Lock(Bytes),
    /// `build LIST FIRST COUNT`: runs so many of the host's programs from a list of commands, from the line FIRST
    /// (counted from 0) on, one after the other; after the last line comes the first.
    Build(String, u64, u64),
}

/// What is answered at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// `ping`.
    Ping,
    /// `meminfo`: the kernel's own account, in bytes.
    Meminfo,
    /// `vmstat`: swapping, major faults, refaults, stalls and OOM kills since boot.
    Vmstat,
    /// `hostfs`: makes the host's files readable for `build`, where User Mode Linux lets its guest see them.
    Hostfs,
    /// `balloon`: pages inflated and deflated since boot and OOM kills, from /proc/vmstat.
    Balloon,
    /// `load MODULE`: inserts a module of the image.
    Load(String),
    /// `unload MODULE`.
    Unload(String),
    /// `swapon DEVICE`: formats it and swaps to it.
    Swapon(String),
    /// `reboot`, without ceremony.
    Reboot,
    /// `poweroff`, without ceremony.
    Poweroff,
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParseCommandError {
    /// No such word.
    #[error("`{0}` is no command")]
    Unknown(String),
    /// An argument is missing.
    #[error("`{command}` needs {what}")]
    Missing {
        /// The command.
        command: &'static str,
        /// The argument.
        what: &'static str,
    },
    /// Words are left over.
    #[error("`{0}` is one word too many")]
    TooMany(String),
    /// No number of seconds, or more than a day.
    #[error("`{0}` is no number of seconds from 0 to 86400")]
    Seconds(String),
    /// No whole number.
    #[error("`{0}` is no whole number")]
    Number(String),
    /// No size.
    #[error(transparent)]
    Size(#[from] ParseSizeError),
    /// A name with other characters than letters, digits, `_`, `-` and, in devices and paths, `/`, and `.` in paths.
    #[error("`{0}` is no name of a module, device or file")]
    Name(String),
}

/// The longest time a command may be told to take.
const LONGEST_SECONDS: f64 = 86_400.0;

impl Command {
    /// Reads one command.
    pub(crate) fn parse(text: &str) -> Result<Self, ParseCommandError> {
        let text = text.trim();
        if let Some(line) = text.strip_prefix("sh ") {
            return Ok(Self::Shell(line.to_owned()));
        }
        match text.strip_prefix("script ") {
            Some(script) => Self::parse_script(script).map(Self::Script),
            None if text == "stats" => Ok(Self::Stats),
            None if text == "stop" => Ok(Self::Stop),
            None => Step::parse(text).map(Self::Step),
        }
    }

    /// Reads steps separated by semicolons or commas.
    fn parse_script(text: &str) -> Result<Vec<Step>, ParseCommandError> {
        text.split([';', ',']).map(str::trim).filter(|step| !step.is_empty()).map(Step::parse).collect()
    }
}

impl Step {
    fn parse(text: &str) -> Result<Self, ParseCommandError> {
        let mut words =
            Words { command: "", rest: text.split([' ', ':']).filter(|word| !word.is_empty()).collect() };
        words.rest.reverse();
        let step = words.step()?;
        match words.rest.pop() {
            Some(word) => Err(ParseCommandError::TooMany(word.to_owned())),
            None => Ok(step),
        }
    }

    /// The text that [`Command::parse`] reads back.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Work(work) => work.text(),
            Self::Ask(ask) => ask.text(),
        }
    }
}

impl Work {
    /// The text that [`Command::parse`] reads back.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Fill(size, seed) => format!("fill {} {seed}", size.0),
            Self::Grab(size, seed) => format!("grab {} {seed}", size.0),
            Self::Verify => "verify".into(),
            Self::Touch(time, None) => format!("touch {}", time.as_secs_f64()),
            Self::Touch(time, Some(rate)) => format!("touch {} {rate}", time.as_secs_f64()),
            Self::Free(None) => "free".into(),
            Self::Free(Some(size)) => format!("free {}", size.0),
            Self::Hold(time) => format!("hold {}", time.as_secs_f64()),
            Self::Churn(time, size) => format!("churn {} {}", time.as_secs_f64(), size.0),
            Self::Lock(size) => format!("lock {}", size.0),
            Self::Build(list, first, count) => format!("build {list} {first} {count}"),
        }
    }
}

impl Ask {
    /// The text that [`Command::parse`] reads back.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Ping => "ping".into(),
            Self::Meminfo => "meminfo".into(),
            Self::Balloon => "balloon".into(),
            Self::Vmstat => "vmstat".into(),
            Self::Hostfs => "hostfs".into(),
            Self::Load(name) => format!("load {name}"),
            Self::Unload(name) => format!("unload {name}"),
            Self::Swapon(device) => format!("swapon {device}"),
            Self::Reboot => "reboot".into(),
            Self::Poweroff => "poweroff".into(),
        }
    }
}

/// The words of a command, last one first.
struct Words<'a> {
    command: &'static str,
    rest: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn step(&mut self) -> Result<Step, ParseCommandError> {
        let word = self.rest.pop().unwrap_or_default();
        if let Some(work) = self.work(word)? {
            return Ok(Step::Work(work));
        }
        self.ask(word)?.map(Step::Ask).ok_or_else(|| ParseCommandError::Unknown(word.to_owned()))
    }

    fn work(&mut self, word: &str) -> Result<Option<Work>, ParseCommandError> {
        Ok(Some(match word {
            "fill" => Work::Fill(self.named("fill").size()?, self.optional_number()?.unwrap_or(1)),
            "grab" => Work::Grab(self.named("grab").size()?, self.optional_number()?.unwrap_or(1)),
            "verify" => Work::Verify,
            "touch" => Work::Touch(self.named("touch").seconds()?, self.optional_number()?),
            "free" if self.rest.is_empty() => Work::Free(None),
            "free" => Work::Free(Some(self.named("free").size()?)),
            "hold" => Work::Hold(self.named("hold").seconds()?),
            "churn" => Work::Churn(self.named("churn").seconds()?, self.size()?),
            "lock" => Work::Lock(self.named("lock").size()?),
            "build" => Work::Build(self.named("build").path()?, self.number()?, self.number()?),
            _ => return Ok(None),
        }))
    }

    fn ask(&mut self, word: &str) -> Result<Option<Ask>, ParseCommandError> {
        Ok(Some(match word {
            "ping" => Ask::Ping,
            "meminfo" => Ask::Meminfo,
            "balloon" => Ask::Balloon,
            "vmstat" => Ask::Vmstat,
            "hostfs" => Ask::Hostfs,
            "load" => Ask::Load(self.named("load").module()?),
            "unload" => Ask::Unload(self.named("unload").module()?),
            "swapon" => Ask::Swapon(self.named("swapon").device()?),
            "reboot" => Ask::Reboot,
            "poweroff" => Ask::Poweroff,
            _ => return Ok(None),
        }))
    }

    fn named(&mut self, command: &'static str) -> &mut Self {
        self.command = command;
        self
    }

    fn next(&mut self, what: &'static str) -> Result<&'a str, ParseCommandError> {
        self.rest.pop().ok_or(ParseCommandError::Missing { command: self.command, what })
    }

    fn size(&mut self) -> Result<Bytes, ParseCommandError> {
        Ok(self.next("a size")?.parse()?)
    }

    fn seconds(&mut self) -> Result<Duration, ParseCommandError> {
        let word = self.next("a number of seconds")?;
        let seconds = word.parse().ok().filter(|seconds: &f64| (0.0..=LONGEST_SECONDS).contains(seconds));
        seconds.map(Duration::from_secs_f64).ok_or_else(|| ParseCommandError::Seconds(word.to_owned()))
    }

    fn optional_number(&mut self) -> Result<Option<u64>, ParseCommandError> {
        let word = self.rest.pop();
        word.map(|word| word.parse().map_err(|_| ParseCommandError::Number(word.to_owned()))).transpose()
    }

    fn number(&mut self) -> Result<u64, ParseCommandError> {
        let word = self.next("a whole number")?;
        word.parse().map_err(|_| ParseCommandError::Number(word.to_owned()))
    }

    fn path(&mut self) -> Result<String, ParseCommandError> {
        self.name("the path of a list", |c| matches!(c, '/' | '_' | '-' | '.'))
    }

    fn module(&mut self) -> Result<String, ParseCommandError> {
        self.name("the name of a module", |c| c == '_' || c == '-')
    }

    fn device(&mut self) -> Result<String, ParseCommandError> {
        self.name("a device", |c| c == '/' || c == '_')
    }

    fn name(&mut self, what: &'static str, extra: fn(char) -> bool) -> Result<String, ParseCommandError> {
        let word = self.next(what)?;
        if word.chars().all(|c| c.is_ascii_alphanumeric() || extra(c)) {
            return Ok(word.to_owned());
        }
        Err(ParseCommandError::Name(word.to_owned()))
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use plimsoll_units::Bytes;
    use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

    use super::{Ask, Command, ParseCommandError, Step, Work};

    #[test]
    fn console_and_kernel_command_line_mean_the_same() {
        let console = Command::parse("script fill 96M;touch 5;free;hold 3;poweroff").expect("parses");
        let kernel = Command::parse("script fill:96M,touch:5,free,hold:3,poweroff").expect("parses");
        assert_eq!(console, kernel);
        let Command::Script(steps) = console else { panic!("{console:?} is no script") };
        assert_eq!(steps[0], Step::Work(Work::Fill(Bytes::mib(96), 1)));
        assert_eq!(steps[3], Step::Work(Work::Hold(Duration::from_secs(3))));
        assert_eq!(steps[4], Step::Ask(Ask::Poweroff));
    }

    #[test]
    fn wrong_commands_are_named() {
        let unknown = |word: &str| Err(ParseCommandError::Unknown(word.into()));
        assert_eq!(Command::parse("fly"), unknown("fly"));
        assert_eq!(Command::parse(""), unknown(""));
        assert_eq!(Command::parse("script ping;script ping"), unknown("script"));
        let missing = ParseCommandError::Missing { command: "fill", what: "a size" };
        assert_eq!(Command::parse("fill"), Err(missing));
        assert_eq!(Command::parse("ping pong"), Err(ParseCommandError::TooMany("pong".into())));
        assert_eq!(Command::parse("hold -1"), Err(ParseCommandError::Seconds("-1".into())));
        assert_eq!(Command::parse("hold nan"), Err(ParseCommandError::Seconds("nan".into())));
        assert_eq!(Command::parse("hold 1e30"), Err(ParseCommandError::Seconds("1e30".into())));
        assert_eq!(Command::parse("sh a:b; c"), Ok(Command::Shell("a:b; c".into())));
        assert_eq!(Command::parse("load ../x"), Err(ParseCommandError::Name("../x".into())));
        assert_eq!(Command::parse("fill 4K x"), Err(ParseCommandError::Number("x".into())));
    }

    fn steps() -> impl Strategy<Value = Step> {
        let time = (0_u64..86_400_000).prop_map(Duration::from_millis);
        prop_oneof![
            Just(Step::Ask(Ask::Ping)),
            Just(Step::Work(Work::Verify)),
            (any::<u64>(), any::<u64>()).prop_map(|(size, seed)| Step::Work(Work::Grab(Bytes(size), seed))),
            (any::<u64>(), any::<u64>()).prop_map(|(size, seed)| Step::Work(Work::Fill(Bytes(size), seed))),
            (time.clone(), any::<Option<u64>>()).prop_map(|(time, rate)| Step::Work(Work::Touch(time, rate))),
            any::<Option<u64>>().prop_map(|size| Step::Work(Work::Free(size.map(Bytes)))),
            (time, any::<u64>()).prop_map(|(time, size)| Step::Work(Work::Churn(time, Bytes(size)))),
            "[a-z_]{1,12}".prop_map(|name| Step::Ask(Ask::Load(name))),
            ("/[a-z_./-]{0,12}", any::<u64>(), any::<u64>())
                .prop_map(|(list, first, count)| Step::Work(Work::Build(list, first, count))),
            Just(Step::Ask(Ask::Vmstat)),
            Just(Step::Ask(Ask::Hostfs)),
        ]
    }

    proptest! {
        #[test]
        fn text_reads_back(step in steps()) {
            assert_eq!(Command::parse(&step.text()), Ok(Command::Step(step)));
        }

        #[test]
        fn no_text_panics(text in ".{0,80}") {
            drop(Command::parse(&text));
            drop(Command::parse(&format!("script {text}")));
        }
    }
}
