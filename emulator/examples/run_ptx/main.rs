//! Runs a kernel of any PTX text on the emulated device, and prints what it stores or how it fails.

mod values;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cuda_emulator::{Config, Device, EntryPoint, Launch, LaunchError, Module, Profile};
use lexopt::prelude::*;

use values::{Type, count_of};

const USAGE: &str = "\
Runs a kernel of a PTX text on the emulated device.

Usage: run_ptx FILE.ptx [OPTIONS]

  --kernel NAME   the kernel; may be left out where there is one only
  --grid X,Y,Z    blocks of the grid (1,1,1); Y and Z may be left out
  --block X,Y,Z   threads of a block (1,1,1)
  --shared BYTES  dynamic shared memory of a block (0)
  --arg ARGUMENT  the next argument of the kernel, one of
      TYPE:NUMBER             a number, or its bits behind 0x
      in:TYPE:DATA            the address of an array
      out:TYPE:COUNT[:FILE]   the address of fresh memory, which is printed or saved afterwards
      inout:TYPE:DATA[:FILE]  the address of an array that is printed or saved afterwards
      hex:DIGITS              the bytes of a structure
    TYPE is u8 to u64, i8 to i64, b8 to b64 (shown in hexadecimal), f16, bf16, f32 or f64.
    DATA is COUNT*NUMBER, FROM..TO, NUMBER,NUMBER,… or a file of little-endian numbers.
  --print COUNT   how many elements of an array are printed (16)
  --device NAME   a100, h100 or rtx4090 (a100)
  --cooperative   all blocks run at once
  --seed NUMBER   the order in which blocks and warps run (0)
  --no-sanitizer  let uninitialised reads and races pass
  --counters      print what the emulator counted
  --help          print this

Exit codes: 0 the kernel ran, 1 it failed, 2 bad arguments, files or PTX.

Example: run_ptx add.ptx --grid 4 --block 256 --arg in:f32:0..1024 --arg out:f32:1024 --arg u32:1024
";

/// An argument of the kernel.
enum Argument {
    /// Its bytes.
    Value(Vec<u8>),
    /// The address of memory.
    Memory(Memory),
}

struct Memory {
    ty: Type,
    count: usize,
    /// What is in it at first.
    data: Option<Vec<u8>>,
    /// Whether it is printed or saved afterwards.
    result: bool,
    file: Option<PathBuf>,
}

struct Options {
    ptx: PathBuf,
    kernel: Option<String>,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    arguments: Vec<Argument>,
    print: usize,
    profile: Profile,
    cooperative: bool,
    counters: bool,
    config: Config,
}

impl Options {
    fn from_arguments() -> Result<Option<Self>, lexopt::Error> {
        let mut ptx = None;
        let mut options = Self {
            ptx: PathBuf::new(),
            kernel: None,
            grid: [1; 3],
            block: [1; 3],
            shared: 0,
            arguments: Vec::new(),
            print: 16,
            profile: Profile::ALL[0].1,
            cooperative: false,
            counters: false,
            config: Config::default(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Value(path) if ptx.is_none() => ptx = Some(path.into()),
                Long("kernel") => options.kernel = Some(text(&mut parser)?),
                Long("grid") => options.grid = extent(&text(&mut parser)?)?,
                Long("block") => options.block = extent(&text(&mut parser)?)?,
                Long("shared") => options.shared = parser.value()?.parse()?,
                Long("arg") => {
                    let text = text(&mut parser)?;
                    let argument = Argument::parse(&text);
                    let explain = |error| format!("--arg {text}: {error}");
                    options.arguments.push(argument.map_err(explain)?);
                }
                Long("print") => options.print = parser.value()?.parse()?,
                Long("device") => options.profile = profile(&text(&mut parser)?)?,
                Long("cooperative") => options.cooperative = true,
                Long("seed") => options.config.seed = parser.value()?.parse()?,
                Long("no-sanitizer") => options.config.sanitizer = false,
                Long("counters") => options.counters = true,
                Long("help") | Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        options.ptx = ptx.ok_or("no PTX file given")?;
        Ok(Some(options))
    }
}

fn text(parser: &mut lexopt::Parser) -> Result<String, lexopt::Error> {
    parser
        .value()?
        .into_string()
        .map_err(|raw| format!("{}: not valid UTF-8", raw.display()).into())
}

fn extent(text: &str) -> Result<[u32; 3], lexopt::Error> {
    let mut extent = [1; 3];
    let sizes: Vec<&str> = text.split(',').collect();
    for (at, size) in sizes.iter().enumerate() {
        match (extent.get_mut(at), size.parse()) {
            (Some(place), Ok(size)) => *place = size,
            _ => return Err(format!("`{text}` is not one to three whole numbers").into()),
        }
    }
    Ok(extent)
}

fn profile(name: &str) -> Result<Profile, lexopt::Error> {
    let known = Profile::ALL.iter().find(|profile| profile.0 == name);
    known.map(|profile| profile.1).ok_or_else(|| {
        let names: Vec<&str> = Profile::ALL.iter().map(|profile| profile.0).collect();
        format!("--device {name}: it must be one of {}", names.join(", ")).into()
    })
}

impl Argument {
    fn parse(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').ok_or("there is no `:` behind its kind")?;
        match kind {
            "in" | "out" | "inout" => Memory::parse(kind, rest).map(Self::Memory),
            "hex" => bytes_of(rest).map(Self::Value),
            _ => Type::named(kind)?.parse(rest).map(Self::Value),
        }
    }
}

impl Memory {
    fn parse(kind: &str, text: &str) -> Result<Self, String> {
        let (ty, text) = text.split_once(':').ok_or("there is no `:` behind the type")?;
        let ty = Type::named(ty)?;
        let result = kind != "in";
        let (text, file) = match text.split_once(':') {
            Some((text, file)) if result => (text, Some(file.into())),
            _ => (text, None),
        };
        let data = if kind == "out" { None } else { Some(ty.array(text)?) };
        let count = match &data {
            Some(data) => data.len() / ty.bytes,
            None => count_of(text)?,
        };
        if count == 0 {
            return Err("an array without elements".into());
        }
        Ok(Self { ty, count, data, result, file })
    }
}

fn bytes_of(digits: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("`{digits}` is not pairs of hexadecimal digits");
    if digits.is_empty() || !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err(wrong());
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong()))
        .collect()
}

/// Why running stopped, and the exit code that says so.
enum Stop {
    BadInput(Box<dyn Error>),
    Failed(Box<dyn Error>),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}

fn main() -> ExitCode {
    let options = match Options::from_arguments() {
        Ok(Some(options)) => options,
        Ok(None) => {
            let _ = write!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Failed(error)) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(1)
        }
        Err(Stop::BadInput(error)) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<(), Stop> {
    let bad = |error: Box<dyn Error>| Stop::BadInput(error);
    let path = options.ptx.display();
    let text = std::fs::read_to_string(&options.ptx)
        .map_err(|error| bad(format!("{path}: {error}").into()))?;
    let device = Device::with_config(options.profile, options.config);
    let module =
        device.load_module(&text).map_err(|error| bad(format!("{path}: {error}").into()))?;
    let function = kernel(&module, options.kernel.as_deref()).map_err(bad)?;
    let (params, places) = place(&device, &function, &options.arguments).map_err(bad)?;
    let launch = Launch {
        grid: options.grid,
        block: options.block,
        dynamic_shared: options.shared,
        dynamic_shared_limit: options.profile.shared_per_block_optin,
        params: &params,
        cooperative: options.cooperative,
    };
    device.launch(&function, &launch).map_err(|error| match error {
        LaunchError::Invalid(invalid) => Stop::BadInput(invalid.into()),
        LaunchError::Fault(fault) => Stop::Failed(fault.to_string().into()),
    })?;
    for (number, memory, address) in places {
        report(&device, number, memory, address, options.print).map_err(Stop::Failed)?;
    }
    if options.counters {
        writeln!(io::stdout(), "{:#?}", device.counters())?;
    }
    Ok(())
}

fn kernel(module: &Module, name: Option<&str>) -> Result<Arc<EntryPoint>, Box<dyn Error>> {
    let names = module.function_names();
    let name = match (name, &names[..]) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, []) => return Err("the text has no kernel".into()),
        (None, _) => return Err(format!("--kernel must be one of {}", names.join(", ")).into()),
    };
    let known = module.function(name);
    known.ok_or_else(|| format!("there is no kernel `{name}`; {}", names.join(", ")).into())
}

/// Memory of an argument, with the argument's number and the address.
type Place<'a> = (usize, &'a Memory, u64);

/// The parameters of the kernel, and the arrays that they lead to.
fn place<'a>(
    device: &Device,
    function: &EntryPoint,
    arguments: &'a [Argument],
) -> Result<(Vec<u8>, Vec<Place<'a>>), Box<dyn Error>> {
    let formals = function.params();
    if arguments.len() != formals.len() {
        let sizes: Vec<String> = formals.iter().map(|formal| formal.size.to_string()).collect();
        return Err(format!(
            "`{}` has {} parameters (of {} bytes), and there are {} arguments",
            function.name(),
            formals.len(),
            sizes.join(", "),
            arguments.len()
        )
        .into());
    }
    let mut params = vec![0; function.param_bytes()];
    let mut places = Vec::new();
    for (number, (argument, formal)) in arguments.iter().zip(formals).enumerate() {
        let bytes = match argument {
            Argument::Value(bytes) => bytes.clone(),
            Argument::Memory(memory) => {
                let size = (memory.count * memory.ty.bytes) as u64;
                let address = device.alloc(size).ok_or("the device has not enough memory")?;
                if let Some(data) = &memory.data {
                    device.write(address, data)?;
                }
                places.push((number, memory, address));
                address.to_le_bytes().to_vec()
            }
        };
        if bytes.len() != formal.size {
            let (given, size) = (bytes.len(), formal.size);
            return Err(
                format!("argument {number}: {given} bytes for a parameter of {size}").into()
            );
        }
        params[formal.offset..formal.offset + formal.size].copy_from_slice(&bytes);
    }
    Ok((params, places))
}

/// Prints or saves the array of an argument.
fn report(
    device: &Device,
    number: usize,
    memory: &Memory,
    address: u64,
    most: usize,
) -> Result<(), Box<dyn Error>> {
    if !memory.result {
        return Ok(());
    }
    let Memory { ty, count, .. } = *memory;
    let mut bytes = vec![0; count * ty.bytes];
    device.read(address, &mut bytes)?;
    if let Some(file) = &memory.file {
        std::fs::write(file, &bytes).map_err(|error| format!("{}: {error}", file.display()))?;
        writeln!(
            io::stdout(),
            "argument {number}: {count} {} written to {}",
            ty.name,
            file.display()
        )?;
        return Ok(());
    }
    let shown = bytes.chunks(ty.bytes).take(most).map(|number| ty.show(number));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = if count > most { ", …" } else { "" };
    writeln!(io::stdout(), "argument {number}: {count} {}: {shown}{more}", ty.name)?;
    Ok(())
}
