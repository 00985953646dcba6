//! What a person sees who runs it in a terminal: log lines, and below them how far a load is.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{FromRawFd, OwnedFd},
    process::{Command, Stdio},
    ptr,
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    network::before_postgres,
    pipe::{DEADLINE, Pipe, binary},
    support::{
        postgres::{self, V17},
        process::Process,
        program::Config,
        wait,
    },
};

/// Wide enough for each line of the log.
const WIDTH: usize = 300;

/// The other end of a terminal that a process has for its standard error.
struct Terminal {
    process: Process,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn run(config: &Config) -> Terminal {
        let size = libc::winsize { ws_row: 50, ws_col: WIDTH as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut ours, mut its) = (0, 0);
        // SAFETY: both numbers and the size outlive the call; name and settings may be null.
        let opened = unsafe { libc::openpty(&mut ours, &mut its, ptr::null_mut(), ptr::null(), &size) };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: they are open, and nobody else has them.
        let (ours, its) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(its)) };
        let mut command = Command::new(binary());
        command.arg("run").arg("-c").arg(&config.path).env("TERM", "xterm").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(its);
        let process = Process::spawn("offshoot", command, libc::SIGKILL).unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        thread::spawn(move || {
            let (mut ours, mut bytes) = (ours, [0; 4096]);
            // It is an error that nobody has the other end any more.
            while let Ok(read @ 1..) = ours.read(&mut bytes) {
                heard.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
        });
        Terminal { process, said }
    }

    fn rows(&self) -> Vec<String> {
        screen(&String::from_utf8_lossy(&self.said.lock().unwrap()))
    }

    /// Waits for what is to be seen.
    #[track_caller]
    fn shows(&mut self, what: &str, is_it: impl Fn(&[String]) -> bool) -> Vec<String> {
        let seen = wait::attempt(DEADLINE, || {
            let rows = self.rows();
            if is_it(&rows) { Ok(rows) } else { Err(rows.join("\n")) }
        });
        seen.unwrap_or_else(|rows| panic!("{what} is not to be seen in\n{rows}"))
    }
}

/// What stands in the rows of a terminal that is as high as it takes.
fn screen(said: &str) -> Vec<String> {
    let mut rows: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0_usize, 0_usize);
    let mut said = said.chars();
    while let Some(c) = said.next() {
        match c {
            '\r' => column = 0,
            '\n' => row += 1,
            '\x1b' => {
                assert_eq!(said.next(), Some('['));
                let mut number = String::new();
                let letter = said.by_ref().find(|c| c.is_ascii_alphabetic() || (number.push(*c), false).1);
                let count = number.parse().unwrap_or(1);
                match letter {
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    Some('C') => column += count,
                    Some('D') => column = column.saturating_sub(count),
                    Some('K') if number == "2" => rows[row].clear(),
                    Some('K') => rows[row].truncate(column),
                    // It has not come whole yet.
                    None => {}
                    other => panic!("{other:?} is not known to this terminal"),
                }
            }
            c => {
                // Behind the last column it goes on in the next row, but not before there is something to go on with.
                if column == WIDTH {
                    (row, column) = (row + 1, 0);
                    rows.resize(rows.len().max(row + 1), Vec::new());
                }
                let cells = &mut rows[row];
                cells.resize(cells.len().max(column + 1), ' ');
                cells[column] = c;
                column += 1;
            }
        }
        rows.resize(rows.len().max(row + 1), Vec::new());
    }
    let rows = rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned());
    rows.filter(|row| !row.is_empty()).collect()
}

/// A line of the log, whole: its time is where it begins.
fn is_logged(row: &str) -> bool {
    row.starts_with("20") && row.get(10..11) == Some("T") && row.contains(" INFO ")
}

#[test]
fn a_load_is_drawn_below_the_log_and_gone_at_its_end() {
    let db = postgres::shared(V17).create_database();
    db.execute(
        "CREATE TABLE other (id int PRIMARY KEY);
         CREATE TABLE small (id int PRIMARY KEY, v int); INSERT INTO small SELECT i, i FROM generate_series(1, 1234) i;
         CREATE TABLE waits_long (id int PRIMARY KEY, v int); INSERT INTO waits_long SELECT i, i FROM generate_series(1, 9) i;
         ANALYZE",
    );
    let (proxy, url) = before_postgres(&db);
    // One of the two that read tables.
    proxy.hold(r#"FROM ONLY "public"."waits_long""#);
    let mut pipe = Pipe { url, tables: "public.other".into(), ..Pipe::of(&db) };
    pipe.rest = format!(
        "types: com.acme\n\
         aggregates: {{ S: {{ root: small, topic: {0}.s }}, W: {{ root: waits_long, topic: {0}.w }} }}\n\
         events:\n  S: {{ of: S, when: deleted, data: {{ v: v }} }}\n  W: {{ of: W, when: deleted, data: {{ v: v }} }}",
        pipe.name
    );
    let config = Config::new(&pipe.yaml());
    let mut terminal = Terminal::run(&config);
    let rows = terminal.shows("the load", |rows| rows.iter().any(|row| row.contains("1,234 of about 1,234 rows")));
    let (logged, drawn) = rows.split_at(rows.len() - 2);
    assert!(logged.iter().all(|row| is_logged(row)), "{}", rows.join("\n"));
    assert!(drawn[0].starts_with("public.small      "), "{drawn:?}");
    assert!(drawn[1].starts_with("public.waits_long ") && drawn[1].contains(" 0 rows"), "{drawn:?}");
    assert!(drawn.iter().all(|row| row.chars().count() <= WIDTH), "{drawn:?}");
    proxy.let_go();
    let rows = terminal.shows("its end", |rows| rows.iter().any(|row| row.contains("has loaded what events need")));
    terminal.process.signal(libc::SIGTERM);
    assert_eq!(terminal.process.exit(DEADLINE).code(), Some(0));
    let last = terminal.shows("the end", |rows| rows.last().is_some_and(|row| row.contains("stopped")));
    assert!(last.iter().all(|row| is_logged(row)), "{}", last.join("\n"));
    assert!(last.len() >= rows.len() - 2, "{}", last.join("\n"));
}

#[test]
fn the_terminal_of_these_tests_is_one() {
    let said = "one\r\ntwo\r\nthree\r\x1b[1A\x1b[2Knew\x1b[3Dn\x1b[1B\r\x1b[Kend\r\n";
    assert_eq!(screen(said), ["one", "new", "end"]);
    assert_eq!(screen("a\x1b["), ["a"]);
    let full = "x".repeat(WIDTH);
    assert_eq!(screen(&format!("{full}\r\nnext")), [&*full, "next"]);
    assert_eq!(screen(&format!("{full}y\rz")), [&*full, "z"]);
}
