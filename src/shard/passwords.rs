//! The users that may log in with a password: the file that names them, and the check.
//!
//! One line for each user, `USER:$pbkdf2-sha256$ITERATIONS$SALT$HASH` with salt and hash in hexadecimal digits; lines
//! that begin with `#` are comments. The password itself is nowhere: [`hash_line`] makes such a line. No error repeats
//! any part of a line, because a password may have been written there by mistake.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::Path;

use ring::error::Unspecified;
use ring::pbkdf2;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Between the user and the numbers.
const SCHEME: &str = ":$pbkdf2-sha256$";
/// What a new line gets: tens of milliseconds of one processor.
const ITERATIONS: u32 = 100_000;
/// Fewer are no obstacle to whoever steals the file; more would let one log-in occupy a processor for many seconds.
const ITERATIONS_ALLOWED: std::ops::RangeInclusive<u32> = 1_000..=10_000_000;
const SALT_LENGTH: usize = 16;
const SALT_ALLOWED: std::ops::RangeInclusive<usize> = 8..=64;
const HASH_LENGTH: usize = 32;
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// Users and what is known of their passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Passwords {
    users: HashMap<Box<str>, Record>,
    /// What the password of an unknown user is compared with, so that it takes as long as that of a known one.
    decoy: Record,
}

#[derive(Clone, PartialEq, Eq)]
struct Record {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    hash: [u8; HASH_LENGTH],
}

/// What is wrong with a password file.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// The line, counted from 1; 0 for the file as a whole.
    pub line: u32,
    /// One line for the operator.
    pub what: String,
}

impl Default for Passwords {
    /// Nobody.
    fn default() -> Self {
        Passwords {
            users: HashMap::new(),
            decoy: Record {
                iterations: NonZeroU32::MIN.saturating_add(ITERATIONS - 1),
                salt: vec![0; SALT_LENGTH],
                hash: [0; HASH_LENGTH],
            },
        }
    }
}

impl fmt::Debug for Passwords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} users>", self.users.len())
    }
}

impl Passwords {
    /// Reads a password file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, Vec<Fault>> {
        let whole = |what| vec![Fault { line: 0, what }];
        let mut text = String::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
        match read {
            Ok(_) if text.len() as u64 > MAX_FILE_BYTES => {
                Err(whole(format!("has more than {MAX_FILE_BYTES} bytes")))
            }
            Ok(_) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(whole("is not UTF-8 text".to_owned()))
            }
            Err(error) => Err(whole(format!("cannot be read: {error}"))),
        }
    }

    /// Reads the text of a password file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<Fault>> {
        let mut passwords = Passwords::default();
        let mut faults = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim_end();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            match parse_line(text) {
                Ok((user, record)) => {
                    let slowest = passwords.decoy.iterations;
                    if passwords.users.is_empty() || record.iterations > slowest {
                        passwords.decoy.iterations = record.iterations;
                    }
                    if passwords.users.insert(user.into(), record).is_some() {
                        let what = "this user has a line above already".to_owned();
                        faults.push(Fault { line, what });
                    }
                }
                Err(what) => faults.push(Fault { line, what }),
            }
        }
        if faults.is_empty() {
            Ok(passwords)
        } else {
            Err(faults)
        }
    }

    /// How many users there are.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is no user at all.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether this is the user's password. Slow by intention, and for an unknown user as slow as for a known one.
    pub fn verify(&self, user: &str, password: &[u8]) -> bool {
        let known = self.users.get(user);
        let record = known.unwrap_or(&self.decoy);
        let matches = pbkdf2::verify(
            pbkdf2::PBKDF2_HMAC_SHA256,
            record.iterations,
            &record.salt,
            password,
            &record.hash,
        );
        matches.is_ok() && known.is_some()
    }
}

fn parse_line(text: &str) -> Result<(&str, Record), String> {
    let form =
        || "must be USER:$pbkdf2-sha256$ITERATIONS$SALT$HASH, as linkrouterd --hash-password USER makes it";
    let (user, numbers) = text.rsplit_once(SCHEME).ok_or_else(form)?;
    let mut numbers = numbers.split('$');
    let (Some(iterations), Some(salt), Some(hash), None) =
        (numbers.next(), numbers.next(), numbers.next(), numbers.next())
    else {
        return Err(form().to_owned());
    };
    check_user(user)?;
    let iterations = iterations
        .parse()
        .ok()
        .filter(|count| ITERATIONS_ALLOWED.contains(count))
        .and_then(NonZeroU32::new)
        .ok_or_else(|| {
            let (least, most) = (ITERATIONS_ALLOWED.start(), ITERATIONS_ALLOWED.end());
            format!("the iterations must be a number from {least} to {most}")
        })?;
    let salt = from_hex(salt)
        .filter(|salt| SALT_ALLOWED.contains(&salt.len()))
        .ok_or("the salt must be 8 to 64 bytes in hexadecimal digits")?;
    let hash = from_hex(hash)
        .and_then(|hash| hash.try_into().ok())
        .ok_or("the hash must be 32 bytes in hexadecimal digits")?;
    Ok((
        user,
        Record {
            iterations,
            salt,
            hash,
        },
    ))
}

/// Whether a user of this name could ever log in.
fn check_user(user: &str) -> Result<(), String> {
    let longest = crate::endpoint::limits::USER_BYTES;
    if user.is_empty() || user.len() > longest {
        return Err(format!("a user's name has 1 to {longest} bytes"));
    }
    if user.contains(char::is_control) {
        return Err("a user's name has no control characters".to_owned());
    }
    Ok(())
}

/// Why a line for the password file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// The user cannot have this name.
    #[error("{0}")]
    User(String),
    /// The password is empty, or longer than can be sent.
    #[error("a password has 1 to {0} bytes")]
    Password(usize),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random(#[from] Unspecified),
}

/// The line of a password file for this user and password, with a salt of its own.
///
/// # Errors
/// See [`HashError`].
pub fn hash_line(user: &str, password: &str) -> Result<String, HashError> {
    check_user(user).map_err(HashError::User)?;
    // It would be read as a comment.
    if user.starts_with('#') {
        return Err(HashError::User("a user's name does not begin with #".to_owned()));
    }
    let longest = crate::endpoint::limits::PASSWORD_BYTES;
    if password.is_empty() || password.len() > longest || password.contains('\0') {
        return Err(HashError::Password(longest));
    }
    let mut salt = [0; SALT_LENGTH];
    SystemRandom::new().fill(&mut salt)?;
    let iterations = NonZeroU32::MIN.saturating_add(ITERATIONS - 1);
    let mut hash = [0; HASH_LENGTH];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        &salt,
        password.as_bytes(),
        &mut hash,
    );
    Ok(format!(
        "{user}{SCHEME}{iterations}${}${}",
        to_hex(&salt),
        to_hex(&hash)
    ))
}

/// Lower-case hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    let is_even = pairs.remainder().is_empty();
    is_even.then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7914, section 11: PBKDF2-HMAC-SHA256 of "Password" with salt "NaCl" and 80000 iterations; the first 32 bytes.
    const RFC_7914: &str = "4ddcd8f60b98be21830cee5ef22701f9641a4418d04c0414aeff08876b34ab56";

    fn fault(line: &str) -> String {
        let mut faults = Passwords::parse(&format!("# users\n\n{line}\n")).expect_err(line);
        assert_eq!((faults.len(), faults[0].line), (1, 3), "{faults:?}");
        faults.remove(0).what
    }

    #[test]
    fn a_line_that_was_made_lets_its_user_in_and_nobody_else() {
        let line = hash_line("dev:1", "pass word").expect("a line");
        assert_ne!(line, hash_line("dev:1", "pass word").expect("a line"), "salted");
        let passwords = Passwords::parse(&line).expect("good");
        assert!(passwords.verify("dev:1", b"pass word"));
        assert!(!passwords.verify("dev:1", b"pass word "));
        assert!(!passwords.verify("dev", b"pass word"));
        assert!(!passwords.verify("dev:1", b""));
    }

    #[test]
    fn the_function_is_that_of_the_standard() {
        // Its salt is shorter than we take from a file.
        let record = Record {
            iterations: NonZeroU32::new(80_000).expect("not 0"),
            salt: b"NaCl".to_vec(),
            hash: from_hex(RFC_7914)
                .and_then(|hash| hash.try_into().ok())
                .expect("32 bytes"),
        };
        let mut passwords = Passwords::default();
        passwords.users.insert("u".into(), record);
        assert!(passwords.verify("u", b"Password"));
        assert!(!passwords.verify("u", b"password"));
    }

    #[test]
    fn an_unknown_user_costs_as_much_as_the_slowest_known_one() {
        let (salt, hash) = ("00".repeat(16), "00".repeat(32));
        let text = format!("a:$pbkdf2-sha256$1000${salt}${hash}\nb:$pbkdf2-sha256$2000${salt}${hash}\n");
        let passwords = Passwords::parse(&text).expect("good");
        assert_eq!(passwords.decoy.iterations.get(), 2000);
        assert!(!passwords.verify("c", b"x"));
        assert_eq!((passwords.len(), passwords.is_empty()), (2, false));
    }

    #[test]
    fn faults_have_a_line_and_no_secret() {
        let (salt, hash) = ("00".repeat(16), "00".repeat(32));
        assert!(fault("dev1:hunter2").contains("--hash-password"));
        assert!(!fault("dev1:hunter2").contains("hunter2"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$1000${salt}${hash}$")).contains("USER:"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$999${salt}${hash}")).contains("iterations"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$1000$0011${hash}")).contains("salt"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$1000${salt}0${hash}")).contains("salt"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$1000${salt}${salt}")).contains("hash"));
        assert!(fault(&format!("dev1:$pbkdf2-sha256$1000${salt}${}", "g".repeat(64))).contains("hash"));
        assert!(fault(&format!(":$pbkdf2-sha256$1000${salt}${hash}")).contains("name"));
        let twice = format!("a:$pbkdf2-sha256$1000${salt}${hash}\na:$pbkdf2-sha256$1000${salt}${hash}");
        assert_eq!(Passwords::parse(&twice).expect_err("twice")[0].line, 2);
        assert_eq!(
            Passwords::read(Path::new("/nonexistent")).expect_err("absent")[0].line,
            0
        );
    }

    #[test]
    fn a_line_is_made_for_what_can_log_in_only() {
        for (user, password) in [("", "p"), ("a\nb", "p"), ("#a", "p"), ("a", ""), ("a", "x\0y")] {
            hash_line(user, password).expect_err("no line");
        }
        hash_line("a", &"x".repeat(1025)).expect_err("too long");
    }

    #[test]
    fn debug_shows_a_number() {
        let passwords = Passwords::parse(&hash_line("dev1", "p").expect("a line")).expect("good");
        assert_eq!(format!("{passwords:?}"), "<1 users>");
    }
}
