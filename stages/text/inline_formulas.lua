-- A filter of pandoc that writes inline formulas as text: 300\,km$^2$ becomes 300 km, superscript 2.
-- Where text cannot write one, as \sqrt{2}, its TeX source stays.
function Math(math)
  if math.mathtype == "InlineMath" then
    local page = pandoc.write(pandoc.Pandoc({pandoc.Plain({math})}), "html")
    page = page:gsub("<sup>∘</sup>", "°")
    return pandoc.utils.blocks_to_inlines(pandoc.read(page, "html").blocks)
  end
end
